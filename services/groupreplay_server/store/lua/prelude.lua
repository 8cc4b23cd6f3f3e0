-- Put before every operation on a table: its keys, in the order of keys.TableKeys, and what all share.
local policy = KEYS[1]    -- hash  the run's policy clock: version, weights_uri, weights_sha256, label, rewinds ...
local quota = KEYS[2]     -- hash  the run's limits: max_groups, max_bytes; an absent field is unlimited
local usage = KEYS[3]     -- hash  what the run's tables hold: groups, bytes
local config = KEYS[4]    -- hash  TableConfig; an absent field is unlimited
local state = KEYS[5]     -- hash  sequence, fresh_effective, payload_bytes, last_insert_ms, sampled, rewinds, clock_*
local counters = KEYS[6]  -- hash  monotonic counts
local tasks = KEYS[7]     -- hash  event:task -> monotonic count
local fresh = KEYS[8]     -- zset  group_id -> arrival sequence
local recency = KEYS[9]   -- zset  group_id -> policy_version_min * 2^32 + sequence: all replay groups
local arrival = KEYS[10]  -- zset  group_id -> sequence: replay groups, where sampler or remover is fifo or lifo
local priority = KEYS[11] -- zset  group_id -> priority: where max_priority samples or lowest_priority removes
local divergence = KEYS[12] -- zset  group_id -> KL fed back: where the sampler is min_divergence
local clock = KEYS[13]    -- zset  group_id -> next sampling time: where the sampler is prioritized or uniform
local weights = KEYS[14]  -- hash  group_id -> weight without its recency, where there is a clock
local sums = KEYS[15]     -- hash  w:version -> sum of those weights, n:version -> how many
local born = KEYS[16]     -- zset  group_id -> time of insertion: fresh and replay groups, where the table has a ttl
local headers = KEYS[17]  -- hash  group_id -> serialized GroupHeader
local facts = KEYS[18]    -- hash  group_id -> packed, as unpack_fact reads it; never changes
local marks = KEYS[19]    -- hash  group_id -> packed {priority, kl, ess}, as callers fed back; false = not yet
local uses = KEYS[20]     -- hash  group_id -> deliveries that were not given back
local pins = KEYS[21]     -- hash  group_id -> live leases that hold it as replay, and steps whose payloads are kept
local returns = KEYS[22]  -- hash  group_id -> times it came back uncommitted
local leased = KEYS[23]   -- hash  group_id -> lease_id: fresh groups in live leases
local leases = KEYS[24]   -- zset  lease_id -> deadline: live leases
local records = KEYS[25]  -- hash  lease_id -> packed lease
local ended = KEYS[26]    -- zset  lease_id -> time it was committed, released or expired
local steps = KEYS[27]    -- zset  lease_id -> training step that committed it
local seen = KEYS[28]     -- zset  group_id -> time it left
local waiting = KEYS[29]  -- hash  call_id -> packed {fresh groups wanted, deadline}: NextBatch calls that wait
local admitted = KEYS[30] -- hash  producer_id -> packed {groups, deadline, version}: admissions not yet inserted
local garbage = KEYS[31]  -- zset  group_id/payload_ref -> time its last use ended
local lineage = KEYS[32]  -- hash  training step -> packed record of its batch
local logged = KEYS[33]   -- zset  training step -> itself: those in lineage
local producers = KEYS[34] -- hash  producer_id -> packed {first, last heard, last insert, counts, interval_s, status}
local holds = KEYS[35]    -- zset  snapshot_id -> deadline: snapshots that are being read; garbage stays for them
local opened = KEYS[36]   -- hash  group_id -> packed partial group: pieces in order of arrival, terms, sizes, deadline
local pieces = KEYS[37]   -- hash  group_id/piece_id -> packed {header, payload_ref, rollouts}
local closing = KEYS[38]  -- zset  group_id -> when to look at the partial group: its deadline, or the end of a claim
local closed = KEYS[39]   -- hash  group_id -> packed partial group that closed short, or was dropped
local closed_at = KEYS[40] -- zset  group_id -> time: those in closed
local history = KEYS[41]   -- zset  packed summary of a committed training step -> the step
local ratios = KEYS[42]    -- hash  group_id -> packed {payload_ref, bytes, policy version, step; -1 = none}: log ratios
local ratios_at = KEYS[43] -- zset  group_id -> time they were fed back: those in ratios

local now_ms = tonumber(ARGV[1]) -- wall clock of the caller
local topic = ARGV[2]            -- run/table, for wake-ups
local seed = ARGV[3]             -- 32 hexadecimal digits: all random numbers of the call come from them

local WAKE_CHANNEL = 'gr1:wake'
local REMEMBER_MS = 86400000 -- how long an id that left, and an ended lease, are remembered
local STEPS_KEPT = 10000
local PAGE = 256
local AT_ONCE = 100          -- expired leases or groups that one call clears away
local PRODUCERS_KEPT = 10000 -- beyond, those unheard of for an hour are forgotten
local TASKS_KEPT = 1024      -- distinct event:task counts; further tasks are counted together

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

local function count_task(event, task, amount)
  local name = event .. ':' .. task
  if redis.call('HEXISTS', tasks, name) == 0 and redis.call('HLEN', tasks) >= TASKS_KEPT then
    name = event .. ':(other tasks)'
  end
  redis.call('HINCRBY', tasks, name, amount or 1)
end

local function wake(what, amount)
  redis.call('PUBLISH', WAKE_CHANNEL, topic .. ' ' .. what .. ' ' .. amount)
end

-- TableConfig: numbers as numbers, flags as 0 or 1, names as strings; nil = unlimited. Empty where there is no table.
local limits = {}
do
  local flat = redis.call('HGETALL', config)
  for i = 1, #flat, 2 do
    limits[flat[i]] = tonumber(flat[i + 1]) or flat[i + 1]
  end
end

local version = tonumber(redis.call('HGET', policy, 'version') or nil)

local function unpack_fact(packed)
  local fields = cmsgpack.unpack(packed)
  return {
    version_min = fields[1], sequence = fields[2], effective = fields[3] == 1, bytes = fields[4],
    payload_ref = fields[5], prompt_id = fields[6], task = fields[7], priority = fields[8], inserted_ms = fields[9],
    version_max = fields[10], reward_mean = fields[11],
  }
end

local function pack_fact(fact)
  return cmsgpack.pack({
    fact.version_min, fact.sequence, fact.effective and 1 or 0, fact.bytes, fact.payload_ref, fact.prompt_id, fact.task,
    fact.priority, fact.inserted_ms, fact.version_max, fact.reward_mean,
  })
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

local function read_fact(id)
  return read_facts({ id })[1]
end

-- Call visit(page) for pages of a list: a command takes some thousand arguments at most.
local function each_page(list, visit)
  for first = 1, #list, PAGE do
    visit({ unpack(list, first, math.min(first + PAGE - 1, #list)) })
  end
end

-- Call visit(id, fact) for each of these groups that is there.
local function each_group(ids, visit)
  each_page(ids, function(page)
    local found = read_facts(page)
    for i, id in ipairs(page) do
      if found[i] then
        visit(id, found[i])
      end
    end
  end)
end

local function read_facts_by_id(ids)
  local found = {}
  each_group(ids, function(id, fact)
    found[id] = fact
  end)
  return found
end

local function staleness(fact)
  return version - fact.version_min
end

local function is_stale(fact)
  return limits.max_staleness ~= nil and staleness(fact) > limits.max_staleness
end

local function is_expired(fact)
  return limits.ttl_s ~= nil and now_ms - fact.inserted_ms >= 1000 * limits.ttl_s
end

-- Payloads are written before the index names them, on a cluster by a command of their own. Those of an insert that
-- took too long may have been swept away: claim_orphans.lua says up to when.
local function begun_too_long_ago()
  return now_ms <= tonumber(redis.call('HGET', state, 'begun_until_ms') or 0)
end

-- Random numbers: xoshiro128** (Blackman and Vigna), seeded by the caller; the same on every Redis and Valkey.
local generator
local function random_bits()
  if not generator then
    generator = {}
    for i = 0, 3 do
      generator[i] = bit.tobit(tonumber(string.sub(seed, 8 * i + 1, 8 * i + 8), 16))
    end
  end
  local s = generator
  local result = bit.tobit(9 * bit.rol(bit.tobit(5 * s[1]), 7))
  local shifted = bit.lshift(s[1], 9)
  s[2], s[3] = bit.bxor(s[2], s[0]), bit.bxor(s[3], s[1])
  s[1], s[0] = bit.bxor(s[1], s[2]), bit.bxor(s[0], s[3])
  s[2], s[3] = bit.bxor(s[2], shifted), bit.rol(s[3], 11)
  return result
end

-- A draw from the exponential distribution of mean 1, from 53 random bits.
local function exponential()
  local high, low = bit.rshift(random_bits(), 5), bit.rshift(random_bits(), 6)
  return -math.log(1 - (high * 67108864 + low) / 9007199254740992)
end
