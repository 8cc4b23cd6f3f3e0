-- Say where groups are.
-- Returns one of 'unknown', 'fresh', 'leased', 'replay', 'gone' for each.   Errors: UNKNOWN_RUN, UNKNOWN_TABLE
-- repeated: group_id
if redis.call('EXISTS', config) == 0 then
  return no_such_table()
end
expire_leases()
local places = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local place = 'unknown'
  if redis.call('ZSCORE', fresh, id) then
    place = 'fresh'
  elseif redis.call('HEXISTS', leased, id) == 1 then
    place = 'leased'
  elseif redis.call('ZSCORE', recency, id) then
    place = 'replay'
  elseif redis.call('ZSCORE', seen, id) then
    place = 'gone'
  end
  places[#places + 1] = place
end
return places
