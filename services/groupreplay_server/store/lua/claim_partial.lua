-- Take a partial group that is due, to put it together and insert it; below its minimum it is dropped.
-- Returns {what, ...}: {'GONE'} is not open (any more), {'OPEN'} not due or claimed by another server, {'DROPPED',
-- rollouts, min_rollouts, group_size}, or {'CLAIMED', header, payload_ref, header, ...} in order of arrival.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local group_id = ARGV[4]
local insist = tonumber(ARGV[5]) -- 1 = whatever another server has claimed: it may be dead

if not limits.fill then
  return no_such_table()
end
catch_up()
local partial = read_partial(group_id)
if not partial then
  return { 'GONE' }
elseif not is_due(partial) or (insist == 0 and tonumber(redis.call('ZSCORE', closing, group_id)) > now_ms) then
  return { 'OPEN' }
elseif partial.rollouts < partial.min_rollouts then
  drop_partial(group_id, partial)
  return { 'DROPPED', partial.rollouts, partial.min_rollouts, partial.group_size }
end
claim_partial(group_id, partial, insist == 1)
local answer = { 'CLAIMED' }
for _, piece_id in ipairs(partial.pieces) do
  local piece = cmsgpack.unpack(redis.call('HGET', pieces, group_id .. '/' .. piece_id))
  answer[#answer + 1] = piece.header
  answer[#answer + 1] = piece.ref
end
return answer
