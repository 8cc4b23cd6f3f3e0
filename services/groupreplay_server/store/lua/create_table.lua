-- Make a table with this configuration, and the run's policy clock at version 0 if it has none.
-- Returns {1, configuration} if it was made, {0, configuration of the table that is there} otherwise.
-- repeated: name, value
if redis.call('EXISTS', config) == 1 then
  return { 0, redis.call('HGETALL', config) }
end
redis.call('HSET', config, unpack(ARGV, 3))
redis.call('HSETNX', policy, 'version', 0)
redis.call('HSETNX', policy, 'published_at_ms', now_ms)
return { 1, redis.call('HGETALL', config) }
