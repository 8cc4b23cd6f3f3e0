-- Put after prelude.lua: log ratios of tokens, which a trainer feeds back for people to look at. Their bytes lie under
-- a key like a payload's, beside that of the group, and become garbage when newer ones come or the group's data goes.
local RATIO_BYTES_KEPT = 67108864 -- of a table; beyond, those fed back first are dropped

-- Whether the table has any: known to most calls for one command.
local has_ratios
local function read_ratios(id)
  if has_ratios == nil then
    has_ratios = redis.call('EXISTS', ratios) == 1
  end
  local packed = has_ratios and redis.call('HGET', ratios, id)
  if packed then
    local fields = cmsgpack.unpack(packed)
    return { ref = fields[1], bytes = fields[2], version = fields[3], step = fields[4] }
  end
end

local function drop_ratios(id)
  local known = read_ratios(id)
  if known then
    redis.call('HDEL', ratios, id)
    redis.call('ZREM', ratios_at, id)
    redis.call('HINCRBY', state, 'ratio_bytes', 0 - known.bytes)
    redis.call('ZADD', garbage, now_ms, id .. '/' .. known.ref)
  end
end

-- Keep the log ratios of a group in place of those before. '' = none came. Where the group is not there (fact is nil),
-- or what was written may have been swept away meanwhile, they are garbage.
local function keep_ratios(id, fact, ref, bytes, from_version, step)
  local known = ref ~= '' and read_ratios(id)
  if ref == '' or (known and known.ref == ref) then
    return
  elseif not fact or begun_too_long_ago() then
    redis.call('ZADD', garbage, now_ms, id .. '/' .. ref)
    return
  end
  drop_ratios(id)
  has_ratios = true
  redis.call('HSET', ratios, id, cmsgpack.pack({ ref, bytes, from_version, step }))
  redis.call('ZADD', ratios_at, now_ms, id)
  local held = redis.call('HINCRBY', state, 'ratio_bytes', bytes)
  while held > RATIO_BYTES_KEPT do
    drop_ratios(redis.call('ZRANGE', ratios_at, 0, 0)[1])
    held = tonumber(redis.call('HGET', state, 'ratio_bytes'))
  end
end
