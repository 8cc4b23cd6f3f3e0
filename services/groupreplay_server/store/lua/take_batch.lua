-- Lease the next batch by the table's fill rule, or note what is missing for it.
-- Returns what lease_reply (leases.lua) does, or {0, wanted, available, next end of a lease or admission, or 0}.
-- The id of a live lease returns that lease's batch again.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE, STEP_CONFLICT, INVALID_REQUEST
local lease_id = ARGV[4]             -- chosen by the trainer, so a retry is safe
local batch_size = tonumber(ARGV[5]) -- slots
local deadline_ms = tonumber(ARGV[6])   -- when the lease ends
local holder = ARGV[7]               -- who takes it, for diagnosis
local wait_until_ms = tonumber(ARGV[8]) -- how long the caller will wait, for admission
local call_id = ARGV[9]              -- of the call that waits; one whose connection broke may end after its successor

if not limits.fill then
  return no_such_table()
elseif limits.fill == 'sample' then
  return fail('INVALID_REQUEST', 'table %s has fill rule sample, so it makes no batches; call Sample, or use a table '
    .. 'with another fill rule', topic)
end
catch_up()
local known = known_lease(lease_id)
if known then
  redis.call('HDEL', waiting, call_id)
  return known[1]
end

local prompts = {} -- prompt_ids in the batch so far
local function accept(_, fact)
  if prompts[fact.prompt_id] and limits.allow_repeated_prompts == 0 then
    return false
  end
  prompts[fact.prompt_id] = true
  return true
end

-- Walk the fresh groups in order of arrival until the batch is complete. Groups passed over for their prompt, or
-- withheld, stay.
local function choose_fresh()
  local taken = { consumed = {}, chosen = {}, effective = 0, passed_over = 0, stale = 0 }
  local function missing()
    return batch_size - (limits.fill == 'resample' and taken.effective or #taken.consumed)
  end
  local start = 0
  while missing() > 0 do
    -- Most are taken, as a rule, but by resample.
    local size = limits.fill == 'resample' and PAGE or math.min(PAGE, missing() + MORE_THAN_NEEDED)
    local ids = redis.call('ZRANGE', fresh, start, start + size - 1)
    if #ids == 0 then
      break
    end
    start = start + #ids
    for i, fact in ipairs(read_facts(ids)) do
      local id = ids[i]
      local delivered = fact.effective or limits.fill == 'keep'
      if missing() <= 0 then
        break
      elseif is_expired(fact) then
        discard(id, fact, 'expired')
        taken.stale = taken.stale + 1
        start = start - 1
      elseif is_stale(fact) and limits.staleness_rule ~= 'withhold' then
        discard(id, fact, 'stale')
        taken.stale = taken.stale + 1
        start = start - 1
      elseif is_stale(fact) or (delivered and not accept(id, fact)) then
        taken.passed_over = taken.passed_over + 1
      else
        taken.consumed[#taken.consumed + 1] = id
        if fact.effective then
          taken.effective = taken.effective + 1
        end
        if delivered then
          taken.chosen[#taken.chosen + 1] = { id = id, fact = fact, probability = 1, importance_weight = 1 }
        end
      end
    end
  end
  return taken, missing() <= 0
end

-- Under staleness_rule wait: when groups under way would be too old in the next version, a batch waits for them.
-- Returns the deadline of the first such admission, or nil.
local function awaited_admission()
  local first
  if limits.staleness_rule == 'wait' and limits.max_staleness then
    local grants = redis.call('HGETALL', admitted)
    for i = 1, #grants, 2 do
      local grant = cmsgpack.unpack(grants[i + 1])
      if grant[2] > now_ms and version - grant[3] >= limits.max_staleness and (not first or grant[2] < first) then
        first = grant[2]
      end
    end
  end
  return first
end

local awaited_ms = awaited_admission()
local taken, complete = choose_fresh()
if not complete or awaited_ms then
  local wanted = batch_size + taken.passed_over
  local before = redis.call('HGET', waiting, call_id)
  redis.call('HSET', waiting, call_id, cmsgpack.pack({ wanted, wait_until_ms }))
  if not before or cmsgpack.unpack(before)[1] ~= wanted or taken.stale > 0 then
    wake('demand', wanted)
  end
  local next_end = tonumber(redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')[2] or 0)
  if awaited_ms and (next_end == 0 or awaited_ms < next_end) then
    next_end = awaited_ms
  end
  return { 0, wanted, available(), next_end }
end

local entries = {}
deliver_fresh(entries, taken.chosen)
each_page(taken.consumed, function(page)
  redis.call('ZREM', fresh, unpack(page))
  redis.call('ZREM', born, unpack(page))
  local holders = {}
  for i, id in ipairs(page) do
    holders[2 * i - 1], holders[2 * i] = id, lease_id
  end
  redis.call('HSET', leased, unpack(holders))
end)
redis.call('HINCRBY', state, 'fresh_effective', 0 - taken.effective)
if limits.fill == 'replay' then
  local groups = redis.call('ZCARD', recency)
  deliver_drawn(entries, draw_replay(batch_size - #taken.chosen, accept), groups)
end

local lease = {
  holder = holder, deadline_ms = deadline_ms, batch_size = batch_size, fresh_effective = taken.effective,
  consumed = taken.consumed, entries = entries,
}
start_lease(lease_id, lease)
count('batches', 1)
count('consumed', #taken.consumed)
count('shortfall', batch_size - #entries)
redis.call('HDEL', waiting, call_id)
wake('demand', 0)
return lease_reply(lease)
