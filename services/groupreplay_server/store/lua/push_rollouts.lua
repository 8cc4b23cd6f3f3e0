-- Store pieces of partial groups, in the order given; a piece that is there changes nothing.
-- Returns a list with {what, rollouts, group_size} for each piece; what is KEPT, FULL (kept, and the caller has claimed
-- the group), DUPLICATE, DUE (a duplicate of a group that waits to be closed), KNOWN (the group is, or was, in the
-- table), or 'REASON message' for a refused one.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE, STORE_UNAVAILABLE
-- Reasons: INVALID_GROUP, GROUP_CLOSED, FUTURE_POLICY_VERSION, STALE_POLICY_VERSION, GROUP_TOO_LARGE
-- Reasons: TABLE_FULL, QUOTA_EXCEEDED
-- repeated: group_id, piece_id, header, ref, bytes, merged_bytes, rollouts, version_min, version_max, producer_id,
-- repeated: prompt_id, prompt_token_ids, prompt_text, task, columns, rows, group_size, min_rollouts, close_after_ms
if not limits.fill then
  return no_such_table()
end
if begun_too_long_ago() then
  return refuse_late_insert()
end
catch_up()

local AGREED = { 'prompt_id', 'prompt_token_ids', 'prompt_text', 'task', 'group_size', 'columns' }
local most_groups, most_bytes = unpack(redis.call('HMGET', quota, 'max_groups', 'max_bytes'))

local function shown(value)
  return string.sub(tostring(value), 1, 120)
end

-- Rows of columns after one more piece: 't' for tokens, 'r' for rollouts, 'b' where both are as many; nil = they
-- differ.
local function joined_rows(left, right)
  local joined = {}
  for i = 1, #left do
    local one, other = string.sub(left, i, i), string.sub(right, i, i)
    if one ~= other and one ~= 'b' and other ~= 'b' then
      return nil
    end
    joined[i] = one == 'b' and other or one
  end
  return table.concat(joined)
end

local function disagreement(piece, partial)
  for _, name in ipairs(AGREED) do
    if piece[name] ~= partial.terms[name] then
      return string.format("INVALID_GROUP group %s: piece %s has %s '%s', its first piece %s has '%s'; rollouts of "
        .. 'one group have all of it in common', piece.group_id, piece.id, name, shown(piece[name]), partial.pieces[1],
        shown(partial.terms[name]))
    end
  end
  if not joined_rows(partial.rows, piece.rows) then
    return string.format('INVALID_GROUP group %s: piece %s has columns with a row for each token that earlier pieces '
      .. 'have for each rollout, or the reverse: %s after %s, in the order of their names', piece.group_id, piece.id,
      shown(piece.rows), shown(partial.rows))
  elseif partial.rollouts + piece.rollouts > partial.group_size then
    return string.format('INVALID_GROUP group %s: piece %s has %d rollouts, which would make %d of %d; push as many '
      .. 'as group_size says', piece.group_id, piece.id, piece.rollouts, partial.rollouts + piece.rollouts,
      partial.group_size)
  end
end

-- Why the group takes no more pieces.
local function end_of(piece, partial)
  local why = 'its time was over'
  if partial.rollouts >= partial.group_size then
    why = 'it was complete'
  end
  return string.format('GROUP_CLOSED group %s closed with %d of %d rollouts, without piece %s: %s; generate the rest '
    .. 'in a new group, or allow more time with close_after_s', piece.group_id, partial.rollouts, partial.group_size,
    piece.id, why)
end

-- Bytes that would be over the table's limit even without any replay.
local function over_capacity(bytes)
  if not limits.capacity_bytes then
    return false
  end
  local held, replay_held = unpack(redis.call('HMGET', state, 'payload_bytes', 'replay_bytes'))
  return tonumber(held or 0) - tonumber(replay_held or 0) + bytes > limits.capacity_bytes
end

local function over_quota(piece, partial)
  local groups, held = unpack(redis.call('HMGET', usage, 'groups', 'bytes'))
  return (most_groups and not partial and tonumber(groups or 0) >= tonumber(most_groups))
    or (most_bytes and tonumber(held or 0) + piece.bytes > tonumber(most_bytes))
end

local function refusal(piece, partial)
  local merged_bytes = (partial and partial.merged_bytes or piece.bytes - piece.merged_bytes) + piece.merged_bytes
  if piece.version_max > version then
    return string.format('FUTURE_POLICY_VERSION group %s: policy version %d of piece %s was never published, the clock '
      .. 'stands at %d; call AdvancePolicy before generating with newer weights', piece.group_id, piece.version_max,
      piece.id, version)
  elseif is_stale(piece) and limits.staleness_rule ~= 'withhold' then
    return string.format('STALE_POLICY_VERSION group %s: policy version %d of piece %s is %d behind %d, table %s takes '
      .. 'at most %d; regenerate it with newer weights', piece.group_id, piece.version_min, piece.id, staleness(piece),
      version, topic, limits.max_staleness)
  elseif merged_bytes > limits.max_group_bytes then
    return string.format('GROUP_TOO_LARGE group %s: piece %s would make its payload %d bytes, table %s takes at most '
      .. '%d; shorten the responses or raise max_group_bytes', piece.group_id, piece.id, merged_bytes, topic,
      limits.max_group_bytes)
  elseif over_capacity(piece.bytes) then
    return string.format('TABLE_FULL group %s: the %d bytes of piece %s do not fit beside the groups of table %s that '
      .. 'nobody has trained on, capacity_bytes is %.0f; take batches faster or raise it', piece.group_id, piece.bytes,
      piece.id, topic, limits.capacity_bytes)
  elseif over_quota(piece, partial) then
    return string.format('QUOTA_EXCEEDED group %s: the %d bytes of piece %s would exceed the quota of run %s '
      .. '(max_groups %s, max_bytes %s); reset tables that are done with, or raise it by SetQuota', piece.group_id,
      piece.bytes, piece.id, string.match(topic, '^[^/]+'), most_groups or 'unlimited', most_bytes or 'unlimited')
  end
end

local function open(piece)
  local terms = {}
  for _, name in ipairs(AGREED) do
    terms[name] = piece[name]
  end
  redis.call('HINCRBY', usage, 'groups', 1)
  count('partial_opened', 1)
  look_at(piece.group_id, now_ms + piece.close_after_ms)
  return {
    pieces = {}, terms = terms, rows = piece.rows, rollouts = 0, group_size = piece.group_size, bytes = 0,
    min_rollouts = piece.min_rollouts, merged_bytes = piece.bytes - piece.merged_bytes, version_max = 0, claims = 0,
    deadline_ms = now_ms + piece.close_after_ms,
  }
end

local function keep(piece, partial)
  table.insert(partial.pieces, piece.id)
  partial.rows = joined_rows(partial.rows, piece.rows)
  partial.rollouts = partial.rollouts + piece.rollouts
  partial.bytes = partial.bytes + piece.bytes
  partial.merged_bytes = partial.merged_bytes + piece.merged_bytes
  partial.version_max = math.max(partial.version_max, piece.version_max)
  redis.call('HSET', pieces, piece.name, cmsgpack.pack({
    header = piece.header, ref = piece.ref, rollouts = piece.rollouts, bytes = piece.bytes,
  }))
  redis.call('HINCRBY', usage, 'bytes', piece.bytes)
  redis.call('HINCRBY', state, 'payload_bytes', piece.bytes)
  evict_for_bytes(0)
  if partial.rollouts >= partial.group_size then
    claim_partial(piece.group_id, partial, true)
    return { 'FULL', partial.rollouts, partial.group_size }
  end
  write_partial(piece.group_id, partial)
  return { 'KEPT', partial.rollouts, partial.group_size }
end

local function is_in_table(id)
  return redis.call('HEXISTS', facts, id) == 1 or redis.call('ZSCORE', seen, id)
end

-- The answer to a piece of a group that is not open, and must not be opened; nil where it may.
local function answer_of_closed(piece)
  local packed = redis.call('HGET', closed, piece.group_id)
  local partial = packed and cmsgpack.unpack(packed)
  local was_piece = false
  for _, piece_id in ipairs(partial and partial.pieces or {}) do
    was_piece = was_piece or piece_id == piece.id
  end
  if is_in_table(piece.group_id) and (was_piece or not partial) then
    return { 'KNOWN', 0, 0 }
  elseif partial and was_piece then
    return { string.format('GROUP_CLOSED group %s was dropped with %d of %d rollouts, piece %s among them; generate a '
      .. 'new group, or allow more time with close_after_s', piece.group_id, partial.rollouts, partial.group_size,
      piece.id), 0, 0 }
  end
  return partial and { end_of(piece, partial), 0, 0 }
end

local function push(piece)
  local partial, known = read_partial(piece.group_id), redis.call('HGET', pieces, piece.name)
  if known then
    -- The connection repeats a call whose answer it lost: the piece is the one that this call wrote.
    local own = cmsgpack.unpack(known).ref == piece.ref
    local what = own and { 'FULL', 'KEPT' } or { 'DUE', 'DUPLICATE' }
    return { is_due(partial) and what[1] or what[2], partial.rollouts, partial.group_size }
  end
  local answer = not partial and answer_of_closed(piece)
  if answer then
    return answer
  elseif partial and is_due(partial) then
    return { end_of(piece, partial), partial.rollouts, partial.group_size }
  end
  local refused = partial and disagreement(piece, partial) or refusal(piece, partial)
  if refused then
    return { refused, partial and partial.rollouts or 0, partial and partial.group_size or 0 }
  end
  return keep(piece, partial or open(piece))
end

local results = {}
for i = 4, #ARGV, 19 do
  local piece = {
    group_id = ARGV[i], id = ARGV[i + 1], header = ARGV[i + 2], ref = ARGV[i + 3], bytes = tonumber(ARGV[i + 4]),
    merged_bytes = tonumber(ARGV[i + 5]), rollouts = tonumber(ARGV[i + 6]), version_min = tonumber(ARGV[i + 7]),
    version_max = tonumber(ARGV[i + 8]), prompt_id = ARGV[i + 10], prompt_token_ids = ARGV[i + 11],
    prompt_text = ARGV[i + 12], task = ARGV[i + 13], columns = ARGV[i + 14], rows = ARGV[i + 15],
    group_size = tonumber(ARGV[i + 16]), min_rollouts = tonumber(ARGV[i + 17]), close_after_ms = tonumber(ARGV[i + 18]),
  }
  piece.name = piece.group_id .. '/' .. piece.id
  hear(ARGV[i + 9], {})
  results[#results + 1] = push(piece)
end
return results
