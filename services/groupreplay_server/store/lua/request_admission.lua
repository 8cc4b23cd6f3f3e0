-- Grant a producer as many groups as the table wants, up to a limit; its earlier grants are forgotten.
-- Returns {groups granted, when a lease or another producer's grant will end, or 0}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local producer_id = ARGV[4]
local max_groups = tonumber(ARGV[5])
local until_ms = tonumber(ARGV[6]) -- when the grant stops counting

if not limits.fill then
  return no_such_table()
end
catch_up()
hear(producer_id, {})

local outstanding, given_up = 0, 0
local next_end = tonumber(redis.call('ZRANGE', leases, 0, 0, 'WITHSCORES')[2] or 0)
local grants = redis.call('HGETALL', admitted)
for i = 1, #grants, 2 do
  local grant = cmsgpack.unpack(grants[i + 1])
  if grants[i] == producer_id or grant[2] <= now_ms then
    redis.call('HDEL', admitted, grants[i])
    given_up = given_up + grant[1]
  else
    outstanding = outstanding + grant[1]
    if next_end == 0 or grant[2] < next_end then
      next_end = grant[2]
    end
  end
end

-- Groups that may still be generated for the versions up to max_staleness from now: whatever is made beyond would be
-- too old when its turn comes.
local function left_for_versions()
  if not limits.groups_per_version then
    return math.huge
  end
  local since = redis.call('HMGET', state, 'paced_from_version', 'paced_from_inserted')
  local versions = limits.max_staleness + version - tonumber(since[1] or 0) + 1
  local inserted = tonumber(redis.call('HGET', counters, 'inserted') or 0) - tonumber(since[2] or 0)
  return versions * limits.groups_per_version - inserted - outstanding
end

local fresh_count = redis.call('ZCARD', fresh)
local wanted = math.min(max_groups, left_for_versions(), limits.fresh_capacity - fresh_count - outstanding)
if limits.ahead_groups then
  local waited_for = wanted_by_waiting()
  local have = waited_for > 0 and available() or fresh_count
  wanted = math.min(wanted, waited_for + limits.ahead_groups - have - outstanding)
end
local granted = math.max(0, wanted)
if granted > 0 then
  redis.call('HSET', admitted, producer_id, cmsgpack.pack({ granted, until_ms, version }))
end
if given_up > granted then
  wake('demand', given_up - granted) -- for the other producers
end
return { granted, next_end }
