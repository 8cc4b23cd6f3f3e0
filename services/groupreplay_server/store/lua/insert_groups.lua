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

-- What pieces of the group hold makes room for the whole.
local function over_quota(bytes, partial)
  local groups, held = unpack(redis.call('HMGET', usage, 'groups', 'bytes'))
  return (most_groups and tonumber(groups or 0) - (partial and 1 or 0) >= tonumber(most_groups))
    or (most_bytes and tonumber(held or 0) - (partial and partial.bytes or 0) + bytes > tonumber(most_bytes))
end

-- Whether inserts are too far ahead of samples.
local function over_rate()
  if not limits.samples_per_insert or redis.call('ZCARD', recency) < limits.min_size_to_sample then
    return false
  end
  return samples_due(1) > limits.max_diff
end

-- Bytes that would be over the table's limit even without any replay.
local function over_bytes(bytes, partial)
  if not limits.capacity_bytes then
    return false
  end
  local held, replay_held = unpack(redis.call('HMGET', state, 'payload_bytes', 'replay_bytes'))
  local released = tonumber(replay_held or 0) + (partial and partial.bytes or 0)
  return tonumber(held or 0) - released + bytes > limits.capacity_bytes
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
  local packed = producer_id ~= '' and redis.call('HGET', admitted, producer_id)
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
      redis.call('HINCRBY', state, 'fresh_effective', 1)
    end
    room = room - 1
  elseif group.effective or limits.replay_ineffective == 1 then
    join_with_room(group.id, group)
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
  group.sequence = redis.call('HINCRBY', state, 'sequence', 1)
  group.effective = group.reward_std > limits.min_reward_std
  group.inserted_ms = now_ms
  redis.call('HSET', headers, group.id, group.header)
  redis.call('HSET', facts, group.id, pack_fact(group))
  redis.call('HINCRBY', usage, 'groups', 1)
  redis.call('HINCRBY', usage, 'bytes', group.bytes)
  evict_for_bytes(group.bytes)
  redis.call('HINCRBY', state, 'payload_bytes', group.bytes)
  count('inserted', 1)
  count(group.effective and 'inserted_effective' or 'inserted_ineffective', 1)
  count_task(group.effective and 'inserted_effective' or 'inserted_ineffective', group.task)
  place(group)
end

-- The connection repeats a call whose answer it lost: the group is there, and its payload is the one this call wrote.
local function is_own(group)
  local fact = group.payload_ref ~= '' and read_fact(group.id)
  return fact and fact.payload_ref == group.payload_ref
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

local results, inserted = {}, 0
for i = 4, #ARGV, 12 do
  local group = {
    id = ARGV[i], header = ARGV[i + 1], version_min = tonumber(ARGV[i + 2]), version_max = tonumber(ARGV[i + 3]),
    reward_std = tonumber(ARGV[i + 4]), bytes = tonumber(ARGV[i + 5]), payload_ref = ARGV[i + 6],
    prompt_id = ARGV[i + 7], producer_id = ARGV[i + 8], task = ARGV[i + 9], priority = tonumber(ARGV[i + 10]),
    reward_mean = tonumber(ARGV[i + 11]),
  }
  if is_own(group) then
    results[#results + 1] = 'INSERTED'
  elseif redis.call('HEXISTS', facts, group.id) == 1 or redis.call('ZSCORE', seen, group.id) then
    count('duplicate', 1)
    drop_payload(group)
    results[#results + 1] = 'DUPLICATE'
  else
    group.partial = read_partial(group.id)
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
      inserted = inserted + 1
    end
    results[#results + 1] = refused or 'INSERTED'
  end
end

for producer_id, changes in pairs(heard) do
  hear(producer_id, changes)
end
if inserted > 0 then
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
