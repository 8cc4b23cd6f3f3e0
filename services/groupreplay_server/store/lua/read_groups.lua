-- Read groups without taking them.
-- Returns for each {place, header, payload_ref, times_sampled, staleness, and ref, policy version and step of its log
-- ratios where it has some}, or {place} where it is unknown or gone.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
-- repeated: group_id
if not limits.fill then
  return no_such_table()
end
catch_up()
local found = {}
for i = 4, #ARGV do
  local id, place = ARGV[i], locate(ARGV[i])
  local fact = place ~= 'unknown' and place ~= 'gone' and read_fact(id)
  local fed_back = fact and read_ratios(id) or {}
  found[#found + 1] = fact and {
    place, redis.call('HGET', headers, id), fact.payload_ref, tonumber(redis.call('HGET', uses, id) or 0),
    staleness(fact), fed_back.ref, fed_back.version, fed_back.step,
  } or { place }
end
return found
