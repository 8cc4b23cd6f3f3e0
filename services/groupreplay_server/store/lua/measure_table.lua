-- Read what the metrics show of a table, at one moment.
-- Returns {what describe_table returns, when its run's policy was published or 0, rewinds of the run, NextBatch calls
-- that wait, producers as diagnose_table returns them}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
if not limits.fill then
  return no_such_table()
end
catch_up()
local described = describe() -- forgets the calls that wait no more
return {
  described,
  tonumber(redis.call('HGET', policy, 'published_at_ms') or 0),
  tonumber(redis.call('HGET', policy, 'rewinds') or 0),
  redis.call('HLEN', waiting),
  known_producers(),
}
