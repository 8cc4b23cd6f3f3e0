-- End a lease after training: effective groups join replay where the fill rule uses it, all others leave.
-- A lease that expired is committed all the same while nobody else took its groups.
-- Returns 1 if this commit was made before, else 0.   Errors: UNKNOWN_LEASE, LEASE_EXPIRED, STEP_CONFLICT
-- Log ratios of groups that have left, or that leave now, become garbage, as do those of a repeated commit.
-- repeated: group_id, priority, kl, ess, ratios_ref, ratios_bytes
local lease_id = ARGV[4]
local step = tonumber(ARGV[5]) -- the training step; one commit per step

follow_rewinds()
local packed = redis.call('HGET', records, lease_id)
if not packed then
  return unknown_lease(lease_id)
end
local lease = cmsgpack.unpack(packed)
if lease.state == 'committed' and lease.step == step then
  for i = 6, #ARGV, 6 do
    keep_ratios(ARGV[i], nil, ARGV[i + 4])
  end
  return 1
elseif lease.state == 'committed' then
  return fail('STEP_CONFLICT', 'lease %s of table %s was committed with step %d, not %d',
    lease_id, topic, lease.step, step)
elseif lease.state == 'released' then
  return fail('LEASE_EXPIRED', 'lease %s of table %s was released, its groups went back; take a new batch',
    lease_id, topic)
end
local other = redis.call('ZRANGEBYSCORE', steps, step, step, 'LIMIT', 0, 1)[1]
if other then
  return fail('STEP_CONFLICT', 'step %d of table %s was committed with lease %s, not %s; two trainers, or one that '
    .. 'restarted from an older checkpoint, use the same step', step, topic, other, lease_id)
end

local is_live = lease.state == 'live'
if not is_live then
  local elsewhere = 0
  for _, id in ipairs(lease.consumed) do
    if not redis.call('ZSCORE', fresh, id) then
      elsewhere = elsewhere + 1
    end
  end
  if elsewhere > 0 then
    return fail('LEASE_EXPIRED', 'lease %s of table %s ended at its deadline, and %d of its %d fresh groups were taken '
      .. 'again or left since; discard this update, or ask for longer leases (lease_s, ExtendLease)',
      lease_id, topic, elsewhere, #lease.consumed)
  end
end

local noted, ids_noted = {}, {}
for i = 6, #ARGV, 6 do
  ids_noted[#ids_noted + 1] = ARGV[i]
end
local facts_noted = read_facts_by_id(ids_noted)
for i = 6, #ARGV, 6 do
  local fact = facts_noted[ARGV[i]]
  keep_ratios(ARGV[i], fact, ARGV[i + 4], tonumber(ARGV[i + 5]), lease.version, step)
  if fact then
    noted[#noted + 1] = { id = ARGV[i], priority = ARGV[i + 1], kl = ARGV[i + 2], ess = ARGV[i + 3], fact = fact }
  end
end
set_marks(noted)

local function is_used_up(id)
  return limits.max_times_sampled and tonumber(redis.call('HGET', uses, id) or 0) >= limits.max_times_sampled
end

local joining = {}
local function leave_or_join(id, fact)
  if not fact.effective and limits.replay_ineffective == 0 then
    discard(id, fact, 'ineffective')
  elseif limits.fill ~= 'replay' then
    discard(id, fact, 'trained')
  elseif is_used_up(id) then
    discard(id, fact, 'exhausted')
  elseif is_expired(fact) then
    discard(id, fact, 'expired')
  else
    joining[#joining + 1] = { id = id, fact = fact }
    if limits.ttl_s then
      redis.call('ZADD', born, fact.inserted_ms, id)
    end
  end
end

local refilled = {}
for _, entry in ipairs(lease.entries) do
  if entry[2] == 1 then
    refilled[#refilled + 1] = entry[1]
  end
end
local function facts_of_lease()
  local found = read_facts_by_id(lease.consumed)
  each_group(refilled, function(id, fact)
    found[id] = fact
  end)
  return found
end
local known = facts_of_lease()

-- One line of the table's history: what the step was given, and what it said of it.
local function summarise()
  local totals, counts = {}, {}
  local function add(name, value)
    if value then
      totals[name], counts[name] = (totals[name] or 0) + value, (counts[name] or 0) + 1
    end
  end
  local function mean(name)
    return counts[name] and totals[name] / counts[name] or false
  end
  local oldest = 0
  for _, entry in ipairs(lease.entries) do
    oldest = math.max(oldest, entry[3])
    add('staleness', entry[3])
  end
  for _, id in ipairs(lease.consumed) do
    add('reward', known[id] and known[id].reward_mean)
  end
  for _, id in ipairs(refilled) do -- some may have left, where the lease had expired
    add('replay_reward', known[id] and known[id].reward_mean)
  end
  for i = 6, #ARGV, 6 do
    add('kl', tonumber(ARGV[i + 2]))
    add('ess', tonumber(ARGV[i + 3]))
  end
  redis.call('ZADD', history, step, cmsgpack.pack({
    step, now_ms, lease.version, lease.batch_size, #lease.consumed, lease.fresh_effective, #lease.entries, #refilled,
    oldest, mean('staleness'), mean('reward'), mean('replay_reward'), mean('kl'), mean('ess'),
  }))
  redis.call('ZREMRANGEBYRANK', history, 0, -STEPS_KEPT - 1)
end

summarise()
log_step(step, lease_id, lease)
if not is_live then -- its uses were given back, and groups may have left: just now, where a logged step kept their data
  known = facts_of_lease()
  for _, entry in ipairs(lease.entries) do
    if known[entry[1]] then
      redis.call('HINCRBY', uses, entry[1], 1)
    end
  end
end
for _, id in ipairs(refilled) do
  local fact = known[id]
  if fact and is_used_up(id) and redis.call('ZSCORE', recency, id) then
    discard(id, fact, 'exhausted')
  elseif fact and not is_live then
    place_anew(id, fact)
  end
end
if is_live then
  unpin(refilled, known)
  each_page(lease.consumed, function(page)
    redis.call('HDEL', leased, unpack(page))
  end)
end
for _, id in ipairs(lease.consumed) do
  local fact = known[id]
  if not is_live then
    redis.call('ZREM', fresh, id)
    redis.call('ZREM', born, id)
    if fact.effective then
      redis.call('HINCRBY', state, 'fresh_effective', -1)
    end
  end
  leave_or_join(id, fact)
end
join_with_room(joining)
if lease.sampled and not is_live then
  redis.call('HINCRBY', state, 'sampled', #lease.entries)
end

redis.call('HSET', records, lease_id, cmsgpack.pack({ state = 'committed', step = step }))
redis.call('ZREM', leases, lease_id)
redis.call('ZADD', ended, now_ms, lease_id)
redis.call('ZADD', steps, step, lease_id)
redis.call('ZREMRANGEBYRANK', steps, 0, -STEPS_KEPT - 1)
local forgotten = redis.call('ZRANGEBYSCORE', ended, '-inf', now_ms - REMEMBER_MS, 'LIMIT', 0, AT_ONCE)
if #forgotten > 0 then
  redis.call('ZREM', ended, unpack(forgotten))
  redis.call('HDEL', records, unpack(forgotten))
end
count('leases_committed', 1)
wake('replay', redis.call('ZCARD', recency))
if not is_live then
  wake('demand', 0) -- its fresh groups had come back, and are gone now
end
return 0
