-- Forget all that the Atropos API remembers of a table, but how often it was reset.
-- Returns how often, this time included.   Errors: none
local atropos = KEYS[1] -- hash  what the Atropos API remembers of a table, as atropos_store.py reads it

local resets = redis.call('HINCRBY', atropos, 'resets', 1)
redis.call('DEL', atropos)
redis.call('HSET', atropos, 'resets', resets)
return resets
