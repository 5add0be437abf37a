"""The scripts that decide inside the server (T8). This docstring is their contract.

`WRITE` says which row stays. KEYS are rows' keys. ARGV:

    1   the order of all rows, int64, little-endian: a row replaces what is stored if this is not lower than its order (batch and
        static views). Empty: each row is compared by its own header, and replaces what is stored if its (event time, order) is not
        lower (push views)
    2   how long the rows live, int64 milliseconds, little-endian, one for each key. Empty: forever
    3…  the rows, one for each key; or one for all of them, then one life for all, too

It returns how many rows were written. What is stored and is no row of ours is replaced; a key of another type than a string ends
the script with an error that begins with FOREIGN and names the key; rows before it are written. Rows of one order that live
forever are written 500 at a time, which costs less than one by one; rows compared by their own headers are not, since a key that
comes twice has to meet what came first.

`OLD` looks through some of the keys of a node, as SCAN does. ARGV: the cursor, the pattern, how many keys to look at, an order
(int64, little-endian). It returns the next cursor and those keys whose rows have a lower order, or are no rows.

`ADVANCE` moves a cursor. KEYS: the cursor. ARGV: what it was, empty where there was none; what it will be. It returns 1 if it did,
0 if the cursor is not what it was.

`CLAIM` raises a fence. KEYS: the fence. ARGV: a run's number. It returns what stood there before; a higher number stays.

Numbers are compared in halves, the high one signed, since a Lua number is a double, which holds 53 bits.
"""

from __future__ import annotations

import hashlib

__all__ = ["ADVANCE", "ADVANCE_SHA", "CLAIM", "CLAIM_SHA", "OLD", "OLD_SHA", "WRITE", "WRITE_SHA"]

WRITE = b"""
local call, pcall, unpack, byte, spread = redis.call, redis.pcall, struct.unpack, string.byte, unpack
local order, lives = ARGV[1], ARGV[2]
local low, high
if order ~= '' then low, high = unpack('<I4i4', order) end
local written, kept = 0, {}
local function set()
  if #kept > 0 then call('MSET', spread(kept)) end
  kept = {}
end
for i = 1, #KEYS do
  local key, row = KEYS[i], ARGV[i + 2] or ARGV[3]
  local stored = pcall('GETRANGE', key, 0, 16)
  if type(stored) ~= 'string' then
    set()
    return redis.error_reply('FOREIGN ' .. key .. ' ' .. stored.err)
  end
  local is_newer = false
  if #stored == 17 and byte(stored) <= 1 then
    if low then
      local stored_low, stored_high = unpack('<I4i4', stored, 10)
      is_newer = stored_high > high or (stored_high == high and stored_low > low)
    else
      local a, b, c, d = unpack('<I4i4I4i4', row, 2)
      local e, f, g, h = unpack('<I4i4I4i4', stored, 2)
      if f ~= b then is_newer = f > b
      elseif e ~= a then is_newer = e > a
      elseif h ~= d then is_newer = h > d
      else is_newer = g > c end
    end
  end
  if not is_newer then
    local life = 0
    if lives ~= '' then
      local life_low, life_high = unpack('<I4I4', lives, #lives > 8 and 8 * i - 7 or 1)
      life = life_low + life_high * 4294967296
    end
    if life > 0 then
      set()
      call('SET', key, row, 'PX', string.format('%.0f', life))
    elseif low then
      kept[#kept + 1] = key
      kept[#kept + 1] = row
      if #kept == 1000 then set() end
    else
      call('SET', key, row)
    end
    written = written + 1
  end
end
set()
return written
"""

WRITE_SHA = hashlib.sha1(WRITE, usedforsecurity=False).hexdigest().encode()

ADVANCE = b"""
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""

ADVANCE_SHA = hashlib.sha1(ADVANCE, usedforsecurity=False).hexdigest().encode()

CLAIM = b"""
local before = redis.call('GET', KEYS[1])
local is_higher = before and (#before > #ARGV[1] or (#before == #ARGV[1] and before > ARGV[1]))
if not is_higher then redis.call('SET', KEYS[1], ARGV[1]) end
return before
"""

CLAIM_SHA = hashlib.sha1(CLAIM, usedforsecurity=False).hexdigest().encode()

OLD = b"""
local call, unpack = redis.call, struct.unpack
local low, high = unpack('<I4i4', ARGV[4])
local page = call('SCAN', ARGV[1], 'MATCH', ARGV[2], 'COUNT', ARGV[3])
local old = {}
for _, key in ipairs(page[2]) do
  local stored = call('GETRANGE', key, 9, 16)
  local is_old = #stored < 8
  if not is_old then
    local stored_low, stored_high = unpack('<I4i4', stored)
    is_old = stored_high < high or (stored_high == high and stored_low < low)
  end
  if is_old then old[#old + 1] = key end
end
return {page[1], old}
"""

OLD_SHA = hashlib.sha1(OLD, usedforsecurity=False).hexdigest().encode()
