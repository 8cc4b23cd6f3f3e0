-- Insert rollout groups, in the order given, as fresh, or as replay where the table only samples; an id that is or was
-- in the table changes nothing.
-- Returns a list with one of these per group: 'INSERTED', 'DUPLICATE', or 'REASON message' for a refused one.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE, STORE_UNAVAILABLE
-- Reasons: FUTURE_POLICY_VERSION, STALE_POLICY_VERSION, GROUP_TOO_LARGE, TABLE_FULL, QUOTA_EXCEEDED, RATE_LIMITED
-- repeated: group_id, header, version_min, version_max, std, bytes, ref, prompt_id, producer_id, task, priority, mean
if not limits.fill then
  return no_such_table()
end
catch_up()

if begun_too_long_ago() then
  return refuse_late_insert()
end

local room = limits.fill == 'sample' and math.huge or limits.fresh_capacity - redis.call('ZCARD', fresh)
local most_groups, most_bytes = unpack(redis.call('HMGET', quota, 'max_groups', 'max_bytes'))
local sequence = tonumber(redis.call('HGET', state, 'sequence') or 0)
local any_partial = redis.call('EXISTS', opened) == 1
local any_admitted = redis.call('EXISTS', admitted) == 1

-- What the groups of this call add up to. It is written once, at the end: for each group it would cost as much as
-- storing the group does.
local added = { groups = 0, bytes = 0, effective = 0, fresh_effective = 0, tasks = {} }

-- What pieces of the group hold makes room for the whole.
local function over_quota(bytes, partial)
  if not most_groups and not most_bytes then
    return false
  end
  local groups, held = unpack(redis.call('HMGET', usage, 'groups', 'bytes'))
  return (most_groups and tonumber(groups or 0) + added.groups - (partial and 1 or 0) >= tonumber(most_groups))
    or (most_bytes and tonumber(held or 0) + added.bytes - (partial and partial.bytes or 0) + bytes
      > tonumber(most_bytes))
end

-- Whether inserts are too far ahead of samples.
local function over_rate()
  if not limits.samples_per_insert or redis.call('ZCARD', recency) < limits.min_size_to_sample then
    return false
  end
  local joined = limits.replay_ineffective == 1 and added.groups or added.effective
  return samples_due(1 + joined) > limits.max_diff
end

-- Bytes that would be over the table's limit even without any replay.
local function over_bytes(bytes, partial)
  if not limits.capacity_bytes then
    return false
  end
  local held, replay_held = unpack(redis.call('HMGET', state, 'payload_bytes', 'replay_bytes'))
  local released = tonumber(replay_held or 0) + (partial and partial.bytes or 0)
  return tonumber(held or 0) + added.bytes - released + bytes > limits.capacity_bytes
end

local function refusal(group)
  if group.version_max > version then
    return string.format('FUTURE_POLICY_VERSION group %s: policy version %d was never published, the clock stands at '
      .. '%d; call AdvancePolicy before generating with newer weights', group.id, group.version_max, version)
  elseif is_stale(group) and limits.staleness_rule ~= 'withhold' then
    return string.format('STALE_POLICY_VERSION group %s: policy version %d is %d behind %d, table %s takes at most %d; '
      .. 'regenerate it with newer weights', group.id, group.version_min, staleness(group), version, topic,
      limits.max_staleness)
  elseif group.bytes > limits.max_group_bytes then
    return string.format('GROUP_TOO_LARGE group %s: its payload is %d bytes, table %s takes at most %d; '
      .. 'shorten the responses or raise max_group_bytes', group.id, group.bytes, topic, limits.max_group_bytes)
  elseif room <= 0 then
    return string.format('TABLE_FULL group %s: table %s holds %d groups that nobody has taken, its fresh_capacity; '
      .. 'slow the producers down (RequestAdmission) or take batches faster', group.id, topic, limits.fresh_capacity)
  elseif over_bytes(group.bytes, group.partial) then
    return string.format('TABLE_FULL group %s: its %d bytes do not fit beside the groups of table %s that nobody '
      .. 'has trained on, capacity_bytes is %.0f; take batches faster or raise it', group.id, group.bytes, topic,
      limits.capacity_bytes)
  elseif over_quota(group.bytes, group.partial) then
    return string.format('QUOTA_EXCEEDED group %s: its %d bytes would exceed the quota of run %s (max_groups %s, '
      .. 'max_bytes %s); reset tables that are done with, or raise it by SetQuota', group.id, group.bytes,
      string.match(topic, '^[^/]+'), most_groups or 'unlimited', most_bytes or 'unlimited')
  elseif over_rate() then
    return string.format('RATE_LIMITED group %s: table %s takes one group for %.6g samples, and inserts are ahead by '
      .. 'its max_diff %.6g; sample faster, or insert slower', group.id, topic, limits.samples_per_insert,
      limits.max_diff)
  end
end

local function use_admission(producer_id)
  local packed = any_admitted and producer_id ~= '' and redis.call('HGET', admitted, producer_id)
  if packed then
    local admission = cmsgpack.unpack(packed)
    if admission[1] > 1 then
      admission[1] = admission[1] - 1
      redis.call('HSET', admitted, producer_id, cmsgpack.pack(admission))
    else
      redis.call('HDEL', admitted, producer_id)
    end
  end
end

local function place(group)
  if limits.fill ~= 'sample' then
    redis.call('ZADD', fresh, group.sequence, group.id)
    if group.effective then
      added.fresh_effective = added.fresh_effective + 1
    end
    room = room - 1
  elseif group.effective or limits.replay_ineffective == 1 then
    join_with_room({ { id = group.id, fact = group } })
  else
    discard(group.id, group, 'ineffective')
    return
  end
  if limits.ttl_s then
    redis.call('ZADD', born, now_ms, group.id)
  end
end

local function insert(group)
  if group.partial then
    complete_partial(group.id, group.partial)
  end
  group.sequence = sequence + added.groups + 1
  group.effective = group.reward_std > limits.min_reward_std
  group.inserted_ms = now_ms
  redis.call('HSET', headers, group.id, group.header)
  redis.call('HSET', facts, group.id, pack_fact(group))
  evict_for_bytes(added.bytes + group.bytes)
  added.groups, added.bytes = added.groups + 1, added.bytes + group.bytes
  added.effective = added.effective + (group.effective and 1 or 0)
  local event = group.effective and 'inserted_effective' or 'inserted_ineffective'
  added.tasks[event] = added.tasks[event] or {}
  added.tasks[event][group.task] = (added.tasks[event][group.task] or 0) + 1
  place(group)
end

local function write_added()
  redis.call('HINCRBY', state, 'sequence', added.groups)
  redis.call('HINCRBY', state, 'payload_bytes', added.bytes)
  redis.call('HINCRBY', state, 'fresh_effective', added.fresh_effective)
  redis.call('HINCRBY', usage, 'groups', added.groups)
  redis.call('HINCRBY', usage, 'bytes', added.bytes)
  count('inserted', added.groups)
  count('inserted_effective', added.effective)
  count('inserted_ineffective', added.groups - added.effective)
  for event, tasks_added in pairs(added.tasks) do
    for task, amount in pairs(tasks_added) do
      count_task(event, task, amount)
    end
  end
end

local heard = {} -- producer_id -> what this call changed
local function note_producer(producer_id, what)
  heard[producer_id] = heard[producer_id] or { inserted = 0, effective = 0, refused = 0 }
  heard[producer_id][what] = heard[producer_id][what] + 1
end

-- The payload that was written for a group which is not taken goes, even where the caller is gone by then.
local function drop_payload(group)
  if group.payload_ref ~= '' then
    redis.call('ZADD', garbage, now_ms, group.id .. '/' .. group.payload_ref)
  end
end

local results = {}
for i = 4, #ARGV, 12 do
  local group = {
    id = ARGV[i], header = ARGV[i + 1], version_min = tonumber(ARGV[i + 2]), version_max = tonumber(ARGV[i + 3]),
    reward_std = tonumber(ARGV[i + 4]), bytes = tonumber(ARGV[i + 5]), payload_ref = ARGV[i + 6],
    prompt_id = ARGV[i + 7], producer_id = ARGV[i + 8], task = ARGV[i + 9], priority = tonumber(ARGV[i + 10]),
    reward_mean = tonumber(ARGV[i + 11]),
  }
  local fact = read_fact(group.id)
  if fact and group.payload_ref ~= '' and fact.payload_ref == group.payload_ref then
    -- The connection repeats a call whose answer it lost: the payload is the one this call wrote.
    results[#results + 1] = 'INSERTED'
  elseif fact or redis.call('ZSCORE', seen, group.id) then
    count('duplicate', 1)
    drop_payload(group)
    results[#results + 1] = 'DUPLICATE'
  else
    group.partial = any_partial and read_partial(group.id) or nil
    local refused = refusal(group)
    if refused then
      local event = 'refused_' .. string.lower(string.match(refused, '^%S+'))
      count(event, 1)
      note_producer(group.producer_id, 'refused')
      count_task(event, group.task)
      drop_payload(group)
    else
      insert(group)
      use_admission(group.producer_id)
      note_producer(group.producer_id, 'inserted')
      if group.effective then
        note_producer(group.producer_id, 'effective')
      end
    end
    results[#results + 1] = refused or 'INSERTED'
  end
end

for producer_id, changes in pairs(heard) do
  hear(producer_id, changes)
end
if added.groups > 0 then
  write_added()
  redis.call('HSET', state, 'last_insert_ms', now_ms)
  if limits.fill == 'sample' then
    wake('replay', redis.call('ZCARD', recency))
  else
    wake('fresh', redis.call('ZCARD', fresh))
  end
end
local forgotten = redis.call('ZRANGEBYSCORE', seen, '-inf', now_ms - REMEMBER_MS, 'LIMIT', 0, AT_ONCE)
if #forgotten > 0 then
  redis.call('ZREM', seen, unpack(forgotten))
end
return results
