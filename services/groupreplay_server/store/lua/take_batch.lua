-- Lease the next batch by the table's fill rule, or note what is missing for it.
-- Returns {1, deadline_ms, policy_version, batch_size, fresh, fresh_effective, groups}, each group being
-- {header, group_id, payload_ref, is_replay, staleness, times_sampled, redeliveries}; or
-- {0, wanted, available, next lease deadline or 0}.
-- The id of a live lease returns that lease's batch again.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE, STEP_CONFLICT
local lease_id = ARGV[3]             -- chosen by the trainer, so a retry is safe
local batch_size = tonumber(ARGV[4]) -- slots
local deadline_ms = tonumber(ARGV[5])   -- when the lease ends
local holder = ARGV[6]               -- who takes it, for diagnosis
local wait_until_ms = tonumber(ARGV[7]) -- how long the caller will wait, for admission
local call_id = ARGV[8]              -- of the call that waits; one whose connection broke may end after its successor

local limits = read_config()
if not limits.fill then
  return no_such_table()
end
local version = policy_version()

local function reply(lease)
  redis.call('HDEL', waiting, call_id)
  local groups = {}
  for first = 1, #lease.entries, PAGE do
    local ids = {}
    for i = first, math.min(first + PAGE - 1, #lease.entries) do
      ids[#ids + 1] = lease.entries[i][1]
    end
    local page_headers, page_facts = redis.call('HMGET', headers, unpack(ids)), read_facts(ids)
    for i, id in ipairs(ids) do
      local entry = lease.entries[first + i - 1]
      groups[#groups + 1] = { page_headers[i], id, page_facts[i].payload_ref, entry[2], entry[3], entry[4], entry[5] }
    end
  end
  return { 1, lease.deadline_ms, lease.version, lease.batch_size, #lease.consumed, lease.fresh_effective, groups }
end

expire_leases()
local packed_lease = redis.call('HGET', records, lease_id)
if packed_lease then
  local lease = cmsgpack.unpack(packed_lease)
  if lease.state == 'live' then
    return reply(lease)
  elseif lease.state == 'committed' then
    return fail('STEP_CONFLICT', 'lease %s of table %s was committed with step %d; take the next batch with a new '
      .. 'lease id', lease_id, topic, lease.step)
  end
end

local prompts = {} -- prompt_ids in the batch so far
local function stale(fact)
  return limits.max_staleness and version - fact.version_min > limits.max_staleness
end
local function repeated(fact)
  return prompts[fact.prompt_id] and not limits.allow_repeated_prompts
end

-- Walk the fresh groups in order of arrival until the batch is complete. Groups passed over for their prompt stay.
local function choose_fresh()
  local taken = { consumed = {}, chosen = {}, facts = {}, effective = 0, passed_over = 0, stale = 0 }
  local function complete()
    return (limits.fill == 'resample' and taken.effective or #taken.consumed) >= batch_size
  end
  local start = 0
  while not complete() do
    local ids = redis.call('ZRANGE', fresh, start, start + PAGE - 1)
    if #ids == 0 then
      break
    end
    start = start + #ids
    for i, fact in ipairs(read_facts(ids)) do
      local id = ids[i]
      local delivered = fact.effective or limits.fill == 'keep'
      if stale(fact) then
        redis.call('ZREM', fresh, id)
        if fact.effective then
          redis.call('HINCRBY', state, 'fresh_effective', -1)
        end
        discard(id, fact, 'stale')
        taken.stale = taken.stale + 1
        start = start - 1
      elseif delivered and repeated(fact) then
        taken.passed_over = taken.passed_over + 1
      elseif not complete() then
        taken.consumed[#taken.consumed + 1] = id
        taken.facts[id] = fact
        if fact.effective then
          taken.effective = taken.effective + 1
        end
        if delivered then
          taken.chosen[#taken.chosen + 1] = id
          prompts[fact.prompt_id] = true
        end
      end
    end
  end
  return taken, complete()
end

-- Most recent effective groups for the slots that are left.
local function choose_replay(slots)
  local ids_chosen, found = {}, {}
  local start, looked_at, most = 0, 0, math.max(4096, 16 * batch_size)
  while #ids_chosen < slots and looked_at < most do
    local ids = redis.call('ZRANGE', recency, start, start + PAGE - 1, 'REV')
    if #ids == 0 then
      break
    end
    start, looked_at = start + #ids, looked_at + #ids
    local used = redis.call('HMGET', uses, unpack(ids))
    for i, fact in ipairs(read_facts(ids)) do
      local id = ids[i]
      if stale(fact) then
        redis.call('ZREM', recency, id)
        discard(id, fact, 'stale')
        start = start - 1
      elseif #ids_chosen < slots and not repeated(fact)
        and not (limits.max_times_sampled and tonumber(used[i] or 0) >= limits.max_times_sampled) then
        ids_chosen[#ids_chosen + 1] = id
        found[id] = fact
        prompts[fact.prompt_id] = true
      end
    end
  end
  return ids_chosen, found
end

local taken, complete = choose_fresh()
if not complete then
  local wanted = batch_size + taken.passed_over
  local before = redis.call('HGET', waiting, call_id)
  redis.call('HSET', waiting, call_id, cmsgpack.pack({ wanted, wait_until_ms }))
  if not before or cmsgpack.unpack(before)[1] ~= wanted or taken.stale > 0 then
    wake('demand', wanted)
  end
  local next_deadline = redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')[2]
  return { 0, wanted, available(limits.fill), tonumber(next_deadline or 0) }
end

local entries = {}
local function add_entry(id, fact, is_replay)
  local returned = tonumber(redis.call('HGET', returns, id) or 0)
  local times_sampled = redis.call('HINCRBY', uses, id, 1)
  entries[#entries + 1] = { id, is_replay, version - fact.version_min, times_sampled, returned }
  count(is_replay == 1 and 'delivered_replay' or 'delivered_fresh', 1)
  count('redelivered', returned > 0 and is_replay == 0 and 1 or 0)
end

for _, id in ipairs(taken.chosen) do
  add_entry(id, taken.facts[id], 0)
end
for _, id in ipairs(taken.consumed) do
  redis.call('ZREM', fresh, id)
  redis.call('HSET', leased, id, lease_id)
end
redis.call('HINCRBY', state, 'fresh_effective', 0 - taken.effective)
if limits.fill == 'replay' then
  local ids, found = choose_replay(batch_size - #taken.chosen)
  for _, id in ipairs(ids) do
    add_entry(id, found[id], 1)
    redis.call('HINCRBY', pins, id, 1)
  end
end

local lease = {
  state = 'live', holder = holder, deadline_ms = deadline_ms, version = version, batch_size = batch_size,
  fresh_effective = taken.effective, consumed = taken.consumed, entries = entries,
}
redis.call('HSET', records, lease_id, cmsgpack.pack(lease))
redis.call('ZADD', leases, deadline_ms, lease_id)
redis.call('ZREM', ended, lease_id)
count('batches', 1)
count('consumed', #taken.consumed)
count('shortfall', batch_size - #entries)
wake('demand', 0)
return reply(lease)
