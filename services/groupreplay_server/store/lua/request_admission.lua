-- Grant a producer as many groups as the table wants, up to a limit; its earlier grants are forgotten.
-- Returns {groups granted, when a lease or another producer's grant will end, or 0}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local producer_id = ARGV[3]
local max_groups = tonumber(ARGV[4])
local until_ms = tonumber(ARGV[5]) -- when the grant stops counting

local limits = read_config()
if not limits.fill then
  return no_such_table()
end
expire_leases()

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

local fresh_count = redis.call('ZCARD', fresh)
local wanted = max_groups
if limits.ahead_groups then
  local waited_for = wanted_by_waiting()
  local have = waited_for > 0 and available(limits.fill) or fresh_count
  wanted = waited_for + limits.ahead_groups - have - outstanding
end
local granted = math.max(0, math.min(max_groups, wanted, limits.fresh_capacity - fresh_count - outstanding))
if granted > 0 then
  redis.call('HSET', admitted, producer_id, cmsgpack.pack({ granted, until_ms }))
end
if given_up > granted then
  wake('demand', given_up - granted) -- for the other producers
end
return { granted, next_end }
