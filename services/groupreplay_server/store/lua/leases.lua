-- Put after replay.lua: leases, and what every operation does first.

-- Put a group back among the fresh ones, unless it has become too old meanwhile.
local function return_to_fresh(id, fact)
  redis.call('HDEL', leased, id)
  redis.call('ZADD', fresh, fact.sequence, id)
  redis.call('HINCRBY', returns, id, 1)
  if fact.effective then
    redis.call('HINCRBY', state, 'fresh_effective', 1)
  end
  if is_expired(fact) then
    discard(id, fact, 'expired')
  elseif limits.ttl_s then
    redis.call('ZADD', born, fact.inserted_ms, id)
  end
end

-- Put the groups of a live lease back to where they were. Returns how many fresh ones.
local function give_back(lease_id, lease, how)
  local delivered, replayed = {}, {}
  for _, entry in ipairs(lease.entries) do
    delivered[entry[1]] = true
    if entry[2] == 1 then
      replayed[#replayed + 1] = entry[1]
    end
  end
  local known = read_facts_by_id(replayed)
  for _, id in ipairs(replayed) do
    redis.call('HINCRBY', uses, id, -1)
    place_anew(id, known[id])
  end
  unpin(replayed, known)
  for _, id in ipairs(lease.consumed) do
    if delivered[id] then
      redis.call('HINCRBY', uses, id, -1)
    end
    return_to_fresh(id, read_fact(id))
  end
  if lease.sampled then
    redis.call('HINCRBY', state, 'sampled', 0 - #lease.entries)
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
  for _, lease_id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now_ms, 'LIMIT', 0, AT_ONCE)) do
    returned = returned + give_back(lease_id, cmsgpack.unpack(redis.call('HGET', records, lease_id)), 'expired')
  end
  if returned > 0 then
    wake('fresh', redis.call('ZCARD', fresh))
  end
end

local function expire_groups()
  if limits.ttl_s then
    local before = now_ms - 1000 * limits.ttl_s
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', born, '-inf', before, 'LIMIT', 0, AT_ONCE)) do
      discard(id, read_fact(id), 'expired')
    end
  end
end

-- Let go of the payloads of a logged step. Returns its record.
local function unpin_step(step)
  local record = cmsgpack.unpack(redis.call('HGET', lineage, step))
  if record.pinned then
    local ids = {}
    for i, entry in ipairs(record.entries) do
      ids[i] = entry[1]
    end
    unpin(ids, read_facts_by_id(ids))
    record.pinned = false
  end
  return record
end

local function forget_step(step)
  unpin_step(step)
  redis.call('HDEL', lineage, step)
  redis.call('ZREM', logged, step)
end

local function forget_steps_after(step)
  if redis.call('ZREMRANGEBYSCORE', history, '(' .. string.format('%.0f', step), '+inf') > 0 then
    redis.call('HINCRBY', state, 'steps_undone', 1)
  end
  for _, undone in ipairs(redis.call('ZRANGE', logged, '(' .. string.format('%.0f', step), '+inf', 'BYSCORE')) do
    forget_step(undone)
  end
end

-- Write down which groups a step was given; keep those of the newest steps readable.
local function log_step(step, lease_id, lease)
  if limits.lineage_steps == 0 then
    return
  end
  local name = string.format('%.0f', step)
  -- A step that comes after many newer ones must not pin: it would be unpinned below, and its fresh groups, which have
  -- no place yet, would be erased.
  local pinned = redis.call('ZCOUNT', logged, '(' .. name, '+inf') < limits.lineage_payload_steps
  if pinned then
    for _, entry in ipairs(lease.entries) do
      pinned = pinned and redis.call('HEXISTS', facts, entry[1]) == 1
    end
    for _, entry in ipairs(pinned and lease.entries or {}) do
      redis.call('HINCRBY', pins, entry[1], 1)
    end
  end
  redis.call('HSET', lineage, name, cmsgpack.pack({
    lease_id = lease_id, holder = lease.holder, deadline_ms = lease.deadline_ms, version = lease.version,
    batch_size = lease.batch_size, fresh_effective = lease.fresh_effective, consumed = lease.consumed,
    entries = lease.entries, seed = lease.seed, committed_ms = now_ms, pinned = pinned,
  }))
  redis.call('ZADD', logged, step, name)
  if limits.lineage_payload_steps > 0 then
    local first_unkept = -limits.lineage_payload_steps - 1
    for _, old in ipairs(redis.call('ZRANGE', logged, first_unkept, first_unkept)) do
      redis.call('HSET', lineage, old, cmsgpack.pack(unpin_step(old)))
    end
  end
  for _, old in ipairs(redis.call('ZRANGE', logged, 0, -limits.lineage_steps - 1)) do
    forget_step(old)
  end
end

-- The trainer went back to an older checkpoint since this table was last looked at: leases of the steps that are undone
-- end, steps may be committed anew, and groups of policy versions that are undone leave.
local function follow_rewinds()
  local rewinds, known = redis.call('HGET', policy, 'rewinds'), redis.call('HGET', state, 'rewinds') or '0'
  if not rewinds or rewinds == known then
    return
  end
  for _, lease_id in ipairs(redis.call('ZRANGE', leases, 0, -1)) do
    give_back(lease_id, cmsgpack.unpack(redis.call('HGET', records, lease_id)), 'released')
  end
  local step, oldest = math.huge, version -- the clock may have advanced again meanwhile
  for rewind = tonumber(known) + 1, tonumber(rewinds) do
    step = math.min(step, tonumber(redis.call('HGET', policy, 'step_of_rewind:' .. rewind)))
    oldest = math.min(oldest, tonumber(redis.call('HGET', policy, 'version_of_rewind:' .. rewind)))
  end
  forget_steps_after(step)
  for _, lease_id in ipairs(redis.call('ZRANGE', steps, '(' .. string.format('%.0f', step), '+inf', 'BYSCORE')) do
    redis.call('ZREM', steps, lease_id)
    redis.call('HDEL', records, lease_id)
    redis.call('ZREM', ended, lease_id)
  end
  local function leave_if_undone(id, fact)
    if fact.version_max > oldest then
      discard(id, fact, 'rewound')
    end
  end
  each_group(redis.call('ZRANGE', fresh, 0, -1), leave_if_undone)
  each_group(redis.call('ZRANGE', recency, 0, -1), leave_if_undone)
  drop_partials_after(oldest)
  redis.call('HSET', state, 'rewinds', rewinds, 'paced_from_version', oldest, 'paced_from_inserted',
    redis.call('HGET', counters, 'inserted') or 0)
end

-- What time and the policy clock have changed since the table was last looked at.
local function catch_up()
  if version then
    follow_rewinds()
    expire_leases()
    expire_groups()
  end
end

local function locate(id)
  if redis.call('ZSCORE', fresh, id) then
    return 'fresh'
  elseif redis.call('HEXISTS', leased, id) == 1 then
    return 'leased'
  elseif redis.call('ZSCORE', recency, id) then
    return 'replay'
  end
  return redis.call('ZSCORE', seen, id) and 'gone' or 'unknown'
end

-- Take note that a producer let itself be heard; `changes` are added to its counts or replace what it said of itself.
local function hear(producer_id, changes)
  if producer_id == '' then
    return
  end
  local packed = redis.call('HGET', producers, producer_id)
  if not packed and redis.call('HLEN', producers) >= PRODUCERS_KEPT then
    local all = redis.call('HGETALL', producers)
    for i = 1, #all, 2 do
      if now_ms - cmsgpack.unpack(all[i + 1])[2] > REMEMBER_MS / 24 then
        redis.call('HDEL', producers, all[i])
      end
    end
  end
  local known = packed and cmsgpack.unpack(packed) or { now_ms, now_ms, 0, 0, 0, 0, 0, '' }
  local inserted = changes.inserted or 0
  redis.call('HSET', producers, producer_id, cmsgpack.pack({
    known[1], now_ms, inserted > 0 and now_ms or known[3], known[4] + inserted, known[5] + (changes.effective or 0),
    known[6] + (changes.refused or 0), changes.interval_s or known[7], changes.status or known[8],
  }))
end

-- All producers heard of: {producer_id, first_ms, last_ms, last_insert_ms, inserted, effective, refused, interval_s,
-- status} each.
local function known_producers()
  local who, all = {}, redis.call('HGETALL', producers)
  for i = 1, #all, 2 do
    local known = cmsgpack.unpack(all[i + 1])
    known[7] = string.format('%.17g', known[7])
    who[#who + 1] = { all[i], unpack(known) }
  end
  return who
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
local function available()
  if limits.fill == 'resample' then
    return tonumber(redis.call('HGET', state, 'fresh_effective') or 0)
  end
  return redis.call('ZCARD', fresh)
end

-- Samples by which inserts, and so many more of them, are ahead under the rate limit. Groups that never join replay,
-- for want of reward variance, give no right to samples and take no room.
local function samples_due(more)
  local name = limits.replay_ineffective == 1 and 'inserted' or 'inserted_effective'
  local joined = tonumber(redis.call('HGET', counters, name) or 0) + more
  return joined * limits.samples_per_insert - tonumber(redis.call('HGET', state, 'sampled') or 0)
end

-- One more than each of these values of fields of a hash, and what HSET takes to write that.
local function one_more(ids, values)
  local sum_of, changed = {}, {}
  for i, value in ipairs(values) do
    sum_of[i] = tonumber(value or 0) + 1
    changed[2 * i - 1], changed[2 * i] = ids[i], sum_of[i]
  end
  return sum_of, changed
end

-- A page of groups is delivered: count their uses. Adds their entries to the lease's, which are also what the caller is
-- told of them. Returns how many had come back before.
local function deliver_page(entries, page, is_replay)
  local ids, returned = {}, 0
  for i, item in ipairs(page) do
    ids[i] = item.id
  end
  local times_returned = redis.call('HMGET', returns, unpack(ids))
  local times_sampled, changed = one_more(ids, redis.call('HMGET', uses, unpack(ids)))
  redis.call('HSET', uses, unpack(changed))
  for i, item in ipairs(page) do
    local times = tonumber(times_returned[i] or 0)
    returned = returned + (times > 0 and 1 or 0)
    entries[#entries + 1] = {
      item.id, is_replay, staleness(item.fact), times_sampled[i], times, item.probability, item.importance_weight,
    }
  end
  return returned, ids
end

local function deliver_fresh(entries, chosen)
  each_page(chosen, function(page)
    count('redelivered', (deliver_page(entries, page, 0)))
  end)
  count('delivered_fresh', #chosen)
end

-- Give each of these groups, which were drawn, its next sampling time.
local function arm_drawn(page)
  local times = {}
  for i, item in ipairs(page) do
    if limits.use_decay < 1 then
      arm(item.id, item.fact) -- its weight is another after each use
    else
      times[2 * i - 1], times[2 * i] = next_time(item.fact, item.weight), item.id
    end
  end
  if #times > 0 then
    redis.call('ZADD', clock, unpack(times))
  end
end

local function deliver_drawn(entries, drawn, groups)
  for i, weight in ipairs(importance_weights(drawn, groups)) do
    drawn[i].importance_weight = weight
  end
  each_page(drawn, function(page)
    local _, ids = deliver_page(entries, page, 1)
    local _, pinned = one_more(ids, redis.call('HMGET', pins, unpack(ids)))
    redis.call('HSET', pins, unpack(pinned))
    if orders.clock then
      arm_drawn(page)
    end
  end)
  count('delivered_replay', #drawn)
end

local function start_lease(lease_id, lease)
  lease.state, lease.version, lease.seed = 'live', version, seed
  redis.call('HSET', records, lease_id, cmsgpack.pack(lease))
  redis.call('ZADD', leases, lease.deadline_ms, lease_id)
  redis.call('ZREM', ended, lease_id)
end

-- The answer that hands a lease out: {1, deadline_ms, policy_version, batch_size, fresh, fresh_effective, groups}, each
-- group {header, group_id, payload_ref, is_replay, staleness, times_sampled, redeliveries, probability, importance}.
local function lease_reply(lease)
  local groups = {}
  for first = 1, #lease.entries, PAGE do
    local ids = {}
    for i = first, math.min(first + PAGE - 1, #lease.entries) do
      ids[#ids + 1] = lease.entries[i][1]
    end
    local page_headers, page_facts = redis.call('HMGET', headers, unpack(ids)), read_facts(ids)
    for i, id in ipairs(ids) do
      local entry = lease.entries[first + i - 1]
      groups[#groups + 1] = {
        page_headers[i], id, page_facts[i].payload_ref, entry[2], entry[3], entry[4], entry[5],
        string.format('%.17g', entry[6]), string.format('%.17g', entry[7]),
      }
    end
  end
  return { 1, lease.deadline_ms, lease.version, lease.batch_size, #lease.consumed, lease.fresh_effective, groups }
end

-- The lease of an id that was used before: {its answer or error}, or nil when the id may be used (again).
local function known_lease(lease_id)
  local packed = redis.call('HGET', records, lease_id)
  if packed then
    local lease = cmsgpack.unpack(packed)
    if lease.state == 'live' then
      return { lease_reply(lease) }
    elseif lease.state == 'committed' then
      return { fail('STEP_CONFLICT', 'lease %s of table %s was committed with step %d; take the next batch with a new '
        .. 'lease id', lease_id, topic, lease.step) }
    end
  end
end

local function unknown_lease(lease_id)
  return fail('UNKNOWN_LEASE', 'table %s never gave a lease %s, or forgot it a day after its end', topic, lease_id)
end

-- The lease of an id, or nil and the error that says why it is not live.
local function live_lease(lease_id)
  local packed = redis.call('HGET', records, lease_id)
  if not packed then
    return nil, unknown_lease(lease_id)
  end
  local lease = cmsgpack.unpack(packed)
  if lease.state == 'committed' then
    return nil, fail('STEP_CONFLICT', 'lease %s of table %s was committed with step %d', lease_id, topic, lease.step)
  elseif lease.state ~= 'live' then
    return nil, fail('LEASE_EXPIRED', 'lease %s of table %s was %s, its groups went back; take a new batch, and extend '
      .. 'sooner', lease_id, topic, lease.state)
  end
  return lease
end

-- The oldest policy version in replay, or with 'REV' the newest; '' where replay is empty.
local function replay_version(...)
  local score = redis.call('ZRANGE', recency, 0, 0, 'WITHSCORES', ...)[2]
  return score and math.floor(tonumber(score) / 4294967296) or ''
end

-- The table's state, as describe_table returns it.
local function describe()
  return {
    redis.call('HGETALL', config),
    version,
    redis.call('ZCARD', fresh),
    redis.call('ZCARD', recency),
    redis.call('HLEN', leased),
    redis.call('ZCARD', leases),
    redis.call('HGETALL', state),
    redis.call('HGETALL', counters),
    math.max(0, wanted_by_waiting() - available()),
    redis.call('HGETALL', tasks),
    replay_version(),
    replay_version('REV'),
  }
end

local function refuse_late_insert()
  local late_s = (tonumber(redis.call('HGET', state, 'begun_until_ms')) - now_ms) / 1000
  return fail('STORE_UNAVAILABLE', 'the insert into table %s began %d s before what may still be inserted; call again, '
    .. 'and see that the clocks of the servers agree', topic, late_s)
end
