-- Say which payloads no group of the table names, and see to it that none of them can be named any more.
-- A group that lost a lease and its index is in `garbage` until its payload is removed; whatever else comes to name
-- payloads must be looked at here.
-- Returns 1 for an orphan, 0 for a payload that is needed, for each.
-- repeated: group_id, payload_ref
local begun_until_ms = tonumber(ARGV[4]) -- inserts begun so long ago are refused from now on; 0 = only look

local function is_piece(id, ref)
  local partial = read_partial(id)
  for _, piece_id in ipairs(partial and partial.pieces or {}) do
    local packed = redis.call('HGET', pieces, id .. '/' .. piece_id)
    if packed and cmsgpack.unpack(packed).ref == ref then
      return true
    end
  end
  return false
end

local found, orphans = {}, 0
for i = 5, #ARGV, 2 do
  local id, ref = ARGV[i], ARGV[i + 1]
  local fact = read_fact(id)
  local fed_back = fact and read_ratios(id)
  local named = fact and fact.payload_ref == ref
    or fed_back and fed_back.ref == ref
    or redis.call('ZSCORE', garbage, id .. '/' .. ref)
    or is_piece(id, ref)
  found[#found + 1] = named and 0 or 1
  orphans = orphans + found[#found]
end
if orphans > 0 and begun_until_ms > tonumber(redis.call('HGET', state, 'begun_until_ms') or 0) then
  redis.call('HSET', state, 'begun_until_ms', begun_until_ms)
end
return found
