-- Make a table with this configuration, and the run's policy clock at version 0 if it has none.
-- Returns {1, configuration} if it was made, {0, configuration of the table that is there} otherwise.
-- Errors: TABLE_EXISTS
-- repeated: name, value
if limits.fill then
  return { 0, redis.call('HGETALL', config) }
elseif is_being_restored() then
  return fail('TABLE_EXISTS', 'table %s is being restored; wait for that, or take another name', topic)
end
redis.call('HSET', config, unpack(ARGV, 4))
redis.call('HSETNX', policy, 'version', 0)
redis.call('HSETNX', policy, 'published_at_ms', now_ms)
redis.call('HSET', state, 'rewinds', redis.call('HGET', policy, 'rewinds') or 0, 'paced_from_version',
  redis.call('HGET', policy, 'version'))
return { 1, redis.call('HGETALL', config) }
