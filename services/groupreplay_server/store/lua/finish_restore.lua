-- Make a restored table visible, once all its groups are there. A run that is new gets the snapshot's policy clock.
-- Returns 1.   Errors: LEASE_EXPIRED, FUTURE_POLICY_VERSION
-- repeated: hash, name, value
local attempt = ARGV[4]
local fill = ARGV[5]
local snapshot_version = tonumber(ARGV[6])
local paced_from_version = tonumber(ARGV[7]) -- of the clock in the snapshot

if not is_attempt(attempt) then
  return restore_lost()
elseif limits.fill then
  return 1
end
local newest = tonumber(redis.call('HGET', state, 'newest'))
if version and newest > version then
  undo_restore()
  return fail('FUTURE_POLICY_VERSION', 'the run of table %s was made meanwhile, or went back to policy version %d, and '
    .. 'the snapshot has groups of version %d; restore it into a new run', topic, version, newest)
end
for i = 8, #ARGV, 3 do
  if ARGV[i] == 'counters' then
    redis.call('HSET', counters, ARGV[i + 1], ARGV[i + 2])
  elseif ARGV[i] == 'tasks' then
    redis.call('HSET', tasks, ARGV[i + 1], ARGV[i + 2])
  elseif ARGV[i] == 'state' then
    redis.call('HSET', state, ARGV[i + 1], ARGV[i + 2])
  elseif not version then
    redis.call('HSET', policy, ARGV[i + 1], ARGV[i + 2])
  end
end
redis.call('HSET', state, 'paced_from_version', paced_from_version + (version or snapshot_version) - snapshot_version)
redis.call('HDEL', state, 'restoring_until_ms', 'newest')
redis.call('HINCRBY', usage, 'groups', redis.call('HLEN', facts))
redis.call('HINCRBY', usage, 'bytes', redis.call('HGET', state, 'payload_bytes') or 0)
redis.call('HSET', config, 'fill', fill)
wake('config', 0)
return 1
