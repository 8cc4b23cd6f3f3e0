-- Insert rollout groups as fresh, in the order given; an id that is or was in the table changes nothing.
-- Returns a list with one of these per group: 'INSERTED', 'DUPLICATE', or 'REASON message' for a refused one.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE, STORE_UNAVAILABLE.
-- Reasons: FUTURE_POLICY_VERSION, STALE_POLICY_VERSION, GROUP_TOO_LARGE, TABLE_FULL
-- repeated: group_id, header, version_min, version_max, reward_std, payload_bytes, payload_ref, prompt_id, producer_id
local limits = read_config()
if not limits.fill then
  return no_such_table()
end

-- On a cluster payloads are written first, and those of an insert that took too long may have been swept away.
local begun_until_ms = tonumber(redis.call('HGET', state, 'begun_until_ms') or 0)
if now_ms <= begun_until_ms then
  return fail('STORE_UNAVAILABLE', 'the insert into table %s began %d s before what may still be inserted; call again, '
    .. 'and see that the clocks of the servers agree', topic, (begun_until_ms - now_ms) / 1000)
end

local version = policy_version()
local room = limits.fresh_capacity - redis.call('ZCARD', fresh)

local function refusal(group)
  if group.version_max > version then
    return string.format('FUTURE_POLICY_VERSION group %s: policy version %d was never published, the clock stands at '
      .. '%d; call AdvancePolicy before generating with newer weights', group.id, group.version_max, version)
  end
  if limits.max_staleness and version - group.version_min > limits.max_staleness then
    return string.format('STALE_POLICY_VERSION group %s: policy version %d is %d behind %d, table %s takes at most %d; '
      .. 'regenerate it with newer weights', group.id, group.version_min, version - group.version_min, version, topic,
      limits.max_staleness)
  end
  if group.bytes > limits.max_group_bytes then
    return string.format('GROUP_TOO_LARGE group %s: its payload is %d bytes, table %s takes at most %d; '
      .. 'shorten the responses or raise max_group_bytes', group.id, group.bytes, topic, limits.max_group_bytes)
  end
  if room <= 0 then
    return string.format('TABLE_FULL group %s: table %s holds %d groups that nobody has taken, its fresh_capacity; '
      .. 'slow the producers down (RequestAdmission) or take batches faster', group.id, topic, limits.fresh_capacity)
  end
end

local function use_admission(producer_id)
  local packed = producer_id ~= '' and redis.call('HGET', admitted, producer_id)
  if packed then
    local admission = cmsgpack.unpack(packed)
    if admission[1] > 1 then
      redis.call('HSET', admitted, producer_id, cmsgpack.pack({ admission[1] - 1, admission[2] }))
    else
      redis.call('HDEL', admitted, producer_id)
    end
  end
end

local function insert(group)
  local sequence = redis.call('HINCRBY', state, 'sequence', 1)
  local effective = group.reward_std > limits.min_reward_std
  redis.call('ZADD', fresh, sequence, group.id)
  redis.call('HSET', headers, group.id, group.header)
  redis.call('HSET', facts, group.id, cmsgpack.pack({
    group.version_min, sequence, effective and 1 or 0, group.bytes, group.payload_ref, group.prompt_id,
  }))
  redis.call('HINCRBY', state, 'payload_bytes', group.bytes)
  if effective then
    redis.call('HINCRBY', state, 'fresh_effective', 1)
  end
  count('inserted', 1)
  count(effective and 'inserted_effective' or 'inserted_ineffective', 1)
  room = room - 1
end

-- The connection repeats a call whose answer it lost: the group is there, and its payload is the one this call wrote.
local function is_own(group)
  local packed = group.payload_ref ~= '' and redis.call('HGET', facts, group.id)
  return packed and unpack_fact(packed).payload_ref == group.payload_ref
end

local results, inserted = {}, 0
for i = 3, #ARGV, 9 do
  local group = {
    id = ARGV[i], header = ARGV[i + 1], version_min = tonumber(ARGV[i + 2]), version_max = tonumber(ARGV[i + 3]),
    reward_std = tonumber(ARGV[i + 4]), bytes = tonumber(ARGV[i + 5]), payload_ref = ARGV[i + 6],
    prompt_id = ARGV[i + 7], producer_id = ARGV[i + 8],
  }
  if is_own(group) then
    results[#results + 1] = 'INSERTED'
  elseif redis.call('HEXISTS', facts, group.id) == 1 or redis.call('ZSCORE', seen, group.id) then
    count('duplicate', 1)
    results[#results + 1] = 'DUPLICATE'
  else
    local refused = refusal(group)
    if refused then
      count('refused_' .. string.lower(string.match(refused, '^%S+')), 1)
    else
      insert(group)
      use_admission(group.producer_id)
      inserted = inserted + 1
    end
    results[#results + 1] = refused or 'INSERTED'
  end
end

if inserted > 0 then
  redis.call('HSET', state, 'last_insert_ms', now_ms)
  wake('fresh', redis.call('ZCARD', fresh))
end
local forgotten = redis.call('ZRANGEBYSCORE', seen, '-inf', now_ms - REMEMBER_MS, 'LIMIT', 0, 100)
if #forgotten > 0 then
  redis.call('ZREM', seen, unpack(forgotten))
end
return results
