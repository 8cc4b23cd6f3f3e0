-- End a lease after training: effective groups join replay where the fill rule uses it, all others leave.
-- A lease that expired is committed all the same while nobody else took its groups.
-- Returns 1 if this commit was made before, else 0.   Errors: UNKNOWN_LEASE, LEASE_EXPIRED, STEP_CONFLICT
local lease_id = ARGV[3]
local step = tonumber(ARGV[4]) -- the training step; one commit per step

local packed = redis.call('HGET', records, lease_id)
if not packed then
  return fail('UNKNOWN_LEASE', 'table %s never gave a lease %s, or forgot it a day after its end', topic, lease_id)
end
local lease = cmsgpack.unpack(packed)
if lease.state == 'committed' and lease.step == step then
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

local limits = read_config()
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

local function leave_or_join(id, fact)
  local used_up = limits.max_times_sampled
    and tonumber(redis.call('HGET', uses, id) or 0) >= limits.max_times_sampled
  if not fact.effective then
    discard(id, fact, 'ineffective')
  elseif limits.fill ~= 'replay' then
    discard(id, fact, 'trained')
  elseif used_up then
    discard(id, fact, 'exhausted')
  else
    redis.call('ZADD', recency, fact.version_min * 4294967296 + fact.sequence, id)
  end
end

for _, entry in ipairs(lease.entries) do
  local id, is_replay = entry[1], entry[2] == 1
  local fact = read_facts({ id })[1]
  if fact and not is_live then
    redis.call('HINCRBY', uses, id, 1)
  end
  if fact and is_replay then
    if limits.max_times_sampled and redis.call('ZSCORE', recency, id)
      and tonumber(redis.call('HGET', uses, id)) >= limits.max_times_sampled then
      redis.call('ZREM', recency, id)
      discard(id, fact, 'exhausted')
    end
    if is_live then
      unpin(id, fact)
    end
  end
end
for _, id in ipairs(lease.consumed) do
  local fact = read_facts({ id })[1]
  if is_live then
    redis.call('HDEL', leased, id)
  else
    redis.call('ZREM', fresh, id)
    if fact.effective then
      redis.call('HINCRBY', state, 'fresh_effective', -1)
    end
  end
  leave_or_join(id, fact)
end
for _ = 1, redis.call('ZCARD', recency) - limits.replay_capacity do
  local id = redis.call('ZPOPMIN', recency)[1]
  discard(id, read_facts({ id })[1], 'evicted')
end

redis.call('HSET', records, lease_id, cmsgpack.pack({ state = 'committed', step = step }))
redis.call('ZREM', leases, lease_id)
redis.call('ZADD', ended, now_ms, lease_id)
redis.call('ZADD', steps, step, lease_id)
redis.call('ZREMRANGEBYRANK', steps, 0, -STEPS_KEPT - 1)
local forgotten = redis.call('ZRANGEBYSCORE', ended, '-inf', now_ms - REMEMBER_MS, 'LIMIT', 0, 100)
if #forgotten > 0 then
  redis.call('ZREM', ended, unpack(forgotten))
  redis.call('HDEL', records, unpack(forgotten))
end
count('leases_committed', 1)
if not is_live then
  wake('demand', 0) -- its fresh groups had come back, and are gone now
end
return 0
