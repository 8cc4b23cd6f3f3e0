-- Put before every operation on a table: its keys, in the order of keys.TableKeys, and what several operations share.
local policy = KEYS[1]    -- hash  the run's policy clock: version, weights_uri, weights_sha256, published_at_ms
local config = KEYS[2]    -- hash  TableConfig; an absent field is unlimited
local state = KEYS[3]     -- hash  sequence, fresh_effective, payload_bytes, last_insert_ms
local counters = KEYS[4]  -- hash  monotonic counts
local fresh = KEYS[5]     -- zset  group_id -> arrival sequence
local recency = KEYS[6]   -- zset  group_id -> policy_version_min * 2^32 + sequence: the replay groups
local headers = KEYS[7]   -- hash  group_id -> serialized GroupHeader
local facts = KEYS[8]     -- hash  group_id -> packed {version_min, sequence, effective, bytes, payload_ref, prompt_id}
local uses = KEYS[9]      -- hash  group_id -> deliveries that were not given back
local pins = KEYS[10]     -- hash  group_id -> live leases that hold it as replay
local returns = KEYS[11]  -- hash  group_id -> times it came back uncommitted
local leased = KEYS[12]   -- hash  group_id -> lease_id: fresh groups in live leases
local leases = KEYS[13]   -- zset  lease_id -> deadline: live leases
local records = KEYS[14]  -- hash  lease_id -> packed lease
local ended = KEYS[15]    -- zset  lease_id -> time it was committed, released or expired
local steps = KEYS[16]    -- zset  lease_id -> training step that committed it
local seen = KEYS[17]     -- zset  group_id -> time it left
local waiting = KEYS[18]  -- hash  call_id -> packed {fresh groups wanted, deadline}: NextBatch calls that wait
local admitted = KEYS[19] -- hash  producer_id -> packed {groups, deadline}: admissions not yet inserted
local garbage = KEYS[20]  -- zset  group_id/payload_ref -> time its last use ended

local now_ms = tonumber(ARGV[1]) -- wall clock of the caller
local topic = ARGV[2]            -- run/table, for wake-ups

local WAKE_CHANNEL = 'gr1:wake'
local REMEMBER_MS = 86400000 -- how long an id that left, and an ended lease, are remembered
local STEPS_KEPT = 10000
local PAGE = 256

local function fail(reason, ...)
  return redis.error_reply(reason .. ' ' .. string.format(...))
end

local function no_such_table()
  if redis.call('EXISTS', policy) == 0 then
    return fail('UNKNOWN_RUN', 'there is no run %s; creating its first table makes it', string.match(topic, '^[^/]+'))
  end
  return fail('UNKNOWN_TABLE', 'there is no table %s; create it first', topic)
end

local function count(name, amount)
  if amount ~= 0 then
    redis.call('HINCRBY', counters, name, amount)
  end
end

local function wake(what, amount)
  redis.call('PUBLISH', WAKE_CHANNEL, topic .. ' ' .. what .. ' ' .. amount)
end

-- The limits that decide over groups; nil = unlimited.
local function read_config()
  local values = redis.call('HMGET', config, 'fill', 'replay_capacity', 'fresh_capacity', 'max_staleness',
    'max_times_sampled', 'min_reward_std', 'max_group_bytes', 'allow_repeated_prompts', 'ahead_groups')
  return {
    fill = values[1],
    replay_capacity = tonumber(values[2] or nil),
    fresh_capacity = tonumber(values[3] or nil),
    max_staleness = tonumber(values[4] or nil),
    max_times_sampled = tonumber(values[5] or nil),
    min_reward_std = tonumber(values[6] or nil),
    max_group_bytes = tonumber(values[7] or nil),
    allow_repeated_prompts = values[8] == '1',
    ahead_groups = tonumber(values[9] or nil),
  }
end

local function policy_version()
  return tonumber(redis.call('HGET', policy, 'version'))
end

local function unpack_fact(packed)
  local fields = cmsgpack.unpack(packed)
  return {
    version_min = fields[1], sequence = fields[2], effective = fields[3] == 1,
    bytes = fields[4], payload_ref = fields[5], prompt_id = fields[6],
  }
end

local function read_facts(ids)
  local found = {}
  if #ids > 0 then
    for i, packed in ipairs(redis.call('HMGET', facts, unpack(ids))) do
      found[i] = packed and unpack_fact(packed)
    end
  end
  return found
end

-- Forget a group that no index and no lease names any more.
local function erase(id, fact)
  redis.call('HDEL', headers, id)
  redis.call('HDEL', facts, id)
  redis.call('HDEL', uses, id)
  redis.call('HDEL', returns, id)
  redis.call('HINCRBY', state, 'payload_bytes', 0 - fact.bytes) -- not -0, which is no integer to Redis
  if fact.payload_ref ~= '' then
    redis.call('ZADD', garbage, now_ms, id .. '/' .. fact.payload_ref)
  end
end

-- A group left its index for good; its data stays while a lease still holds it.
local function discard(id, fact, reason)
  count('gone_' .. reason, 1)
  redis.call('ZADD', seen, now_ms, id)
  if not redis.call('HGET', pins, id) then
    erase(id, fact)
  end
end

local function unpin(id, fact)
  if redis.call('HINCRBY', pins, id, -1) <= 0 then
    redis.call('HDEL', pins, id)
    if not redis.call('ZSCORE', recency, id) then
      erase(id, fact)
    end
  end
end

-- Put the groups of a live lease back to where they were. Returns how many fresh ones.
local function give_back(lease_id, lease, how)
  local delivered = {}
  for _, entry in ipairs(lease.entries) do
    delivered[entry[1]] = true
    if entry[2] == 1 then
      local fact = read_facts({ entry[1] })[1]
      redis.call('HINCRBY', uses, entry[1], -1)
      unpin(entry[1], fact)
    end
  end
  for _, id in ipairs(lease.consumed) do
    local fact = read_facts({ id })[1]
    redis.call('HDEL', leased, id)
    redis.call('ZADD', fresh, fact.sequence, id)
    redis.call('HINCRBY', returns, id, 1)
    if delivered[id] then
      redis.call('HINCRBY', uses, id, -1)
    end
    if fact.effective then
      redis.call('HINCRBY', state, 'fresh_effective', 1)
    end
  end
  lease.state = how
  redis.call('HSET', records, lease_id, cmsgpack.pack(lease))
  redis.call('ZREM', leases, lease_id)
  redis.call('ZADD', ended, now_ms, lease_id)
  count('leases_' .. how, 1)
  count('returned', #lease.consumed)
  return #lease.consumed
end

-- Leases end by themselves at their deadline: whoever looks at the table next carries it out.
local function expire_leases()
  local returned = 0
  for _, lease_id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now_ms, 'LIMIT', 0, 100)) do
    returned = returned + give_back(lease_id, cmsgpack.unpack(redis.call('HGET', records, lease_id)), 'expired')
  end
  if returned > 0 then
    wake('fresh', redis.call('ZCARD', fresh))
  end
end

-- Fresh groups wanted by the NextBatch calls that wait now. A call whose server died is forgotten at its deadline.
local function wanted_by_waiting()
  local sum = 0
  local calls = redis.call('HGETALL', waiting)
  for i = 1, #calls, 2 do
    local call = cmsgpack.unpack(calls[i + 1])
    if call[2] > now_ms then
      sum = sum + call[1]
    else
      redis.call('HDEL', waiting, calls[i])
    end
  end
  return sum
end

-- What counts towards a batch: under resample only effective groups do.
local function available(fill)
  if fill == 'resample' then
    return tonumber(redis.call('HGET', state, 'fresh_effective') or 0)
  end
  return redis.call('ZCARD', fresh)
end
