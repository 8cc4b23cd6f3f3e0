-- Put after replay.lua: partial groups, whose rollouts come in pieces. One is open from its first piece until it is
-- inserted whole, or dropped. It is due when it has all its rollouts or its time is over; from then on it takes no more
-- pieces, so whoever puts it together puts the same group together.
local FIRST_CLAIM_MS = 2000    -- how long the others leave a due group to the server that claimed it
local LONGEST_CLAIM_MS = 60000 -- doubles up to here: a group that finds no room is tried more and more seldom

local function read_partial(id)
  local packed = redis.call('HGET', opened, id)
  return packed and cmsgpack.unpack(packed) or nil
end

local function write_partial(id, partial)
  redis.call('HSET', opened, id, cmsgpack.pack(partial))
end

local function is_due(partial)
  return partial.due or partial.rollouts >= partial.group_size or now_ms >= partial.deadline_ms
end

-- Say when to look at an open group next, to whoever closes groups.
local function look_at(id, time_ms)
  redis.call('ZADD', closing, time_ms, id)
  wake('closing', string.format('%.0f', time_ms))
end

-- The caller is about to put a due group together. The others leave it to the caller for a time, which doubles with
-- every attempt that was nobody's wish.
local function claim_partial(id, partial, is_wish)
  partial.due = true
  look_at(id, now_ms + math.min(FIRST_CLAIM_MS * 2 ^ partial.claims, LONGEST_CLAIM_MS))
  partial.claims = is_wish and 0 or partial.claims + 1
  write_partial(id, partial)
end

-- Let go of a group's pieces. What closed with all its rollouts is in the table; of the others it is remembered which
-- pieces there were.
local function forget_partial(id, partial, remembered)
  for _, piece_id in ipairs(partial.pieces) do
    local name = id .. '/' .. piece_id
    local piece = cmsgpack.unpack(redis.call('HGET', pieces, name))
    redis.call('HDEL', pieces, name)
    redis.call('ZADD', garbage, now_ms, id .. '/' .. piece.ref)
  end
  redis.call('HDEL', opened, id)
  redis.call('ZREM', closing, id)
  redis.call('HINCRBY', state, 'payload_bytes', 0 - partial.bytes)
  redis.call('HINCRBY', usage, 'bytes', 0 - partial.bytes)
  redis.call('HINCRBY', usage, 'groups', -1)
  if remembered then
    redis.call('HSET', closed, id, cmsgpack.pack({
      pieces = partial.pieces, rollouts = partial.rollouts, group_size = partial.group_size,
    }))
    redis.call('ZADD', closed_at, now_ms, id)
    for _, old in ipairs(redis.call('ZRANGEBYSCORE', closed_at, '-inf', now_ms - REMEMBER_MS, 'LIMIT', 0, AT_ONCE)) do
      redis.call('ZREM', closed_at, old)
      redis.call('HDEL', closed, old)
    end
  end
end

local function drop_partial(id, partial)
  forget_partial(id, partial, true)
  count('partial_dropped', 1)
end

-- The group is being inserted: put together from its pieces, or, where it was not due, whole by another way.
local function complete_partial(id, partial)
  if not is_due(partial) then
    drop_partial(id, partial)
  elseif partial.rollouts >= partial.group_size then
    forget_partial(id, partial, false)
    count('partial_closed', 1)
  else
    forget_partial(id, partial, true)
    count('partial_closed_short', 1)
  end
end

-- Drop the open groups that a newer policy version sampled a token of.
local function drop_partials_after(newest)
  local flat = redis.call('HGETALL', opened)
  for i = 1, #flat, 2 do
    local partial = cmsgpack.unpack(flat[i + 1])
    if partial.version_max > newest then
      drop_partial(flat[i], partial)
    end
  end
end
