/**
 * The scripts of `RedisCacheStore`.
 *
 * Every one works on one bucket of a named cache: `KEYS[1]` is the bucket's
 * generation, the keys after it are entries. An entry is a text:
 *
 * - 16 characters: the generation it belongs to, which has to be the current one
 * - 16 characters: the stamp of the write
 * - the payload, or `!` and the number of loads that hold a placeholder
 *
 * A key with an entry that is neither live nor a placeholder is as good as absent.
 */
import * as RedisScript from "./RedisScript.ts"

/** Length of a generation, and of a stamp. */
export const markLength = 16

/** What the payload of a placeholder begins with; JSON never does. */
export const placeholderMark = "!"

/** Begins a generation where there is none: it was flushed or evicted, or nothing was ever written. */
const generation = `
local gen = redis.call('get', KEYS[1])
if not gen then
  gen = ARGV[1]
  redis.call('set', KEYS[1], gen)
end`

/** `state` of an entry: its stamp, and whether it is live; nothing when it is as good as absent. */
const state = `
local function state(key)
  local head = redis.call('getrange', key, 0, 32)
  if string.sub(head, 1, 16) ~= gen then return nil, false end
  return string.sub(head, 17, 32), string.sub(head, 33, 33) ~= '!'
end`

const write = `
local function write(key, text, ttl)
  if ttl == '' then redis.call('set', key, text) else redis.call('set', key, text, 'px', ttl) end
end`

/**
 * Writes and removes entries, in order. ARGV: generation to begin with, stamp, and
 * for each entry two: its ttl (ms, or empty) and payload; or `d` and nothing to
 * remove it. Returns of each that was removed whether it was live (1 or 0).
 *
 * Not for repeating: it could undo what others have written since.
 */
export const change = RedisScript.make(`${generation}${state}${write}
local head = gen .. ARGV[2]
local removed = {}
for i = 2, #KEYS do
  local ttl = ARGV[2 * i - 1]
  if ttl == 'd' then
    local _, live = state(KEYS[i])
    redis.call('unlink', KEYS[i])
    removed[#removed + 1] = live and 1 or 0
  else
    write(KEYS[i], head .. ARGV[2 * i], ttl)
  end
end
return removed`)

/**
 * Begins another generation. ARGV: what nobody else begins one with. Every run begins one of its own: the one that it
 * began when it was run before may have been reset by others since.
 */
export const reset = RedisScript.make(
  `
local time = redis.call('time')
local mark = redis.sha1hex(table.concat({ARGV[1], time[1], time[2]}, ' '))
redis.call('set', KEYS[1], string.sub(mark, 1, ${markLength}))`,
  { retry: true }
)

/** Of each entry the ms left: -1 without a ttl, -2 when it is not live. */
export const ttl = RedisScript.make(
  `
local gen = redis.call('get', KEYS[1])${state}
local left = {}
for i = 2, #KEYS do
  local _, live = state(KEYS[i])
  left[i - 1] = live and redis.call('pttl', KEYS[i]) or -2
end
return left`,
  { retry: true }
)

/**
 * ARGV: generation to begin with, stamp, ms after which a placeholder is forgotten.
 * Returns the header (generation and stamp) that `fill` must still find.
 */
export const reserve = RedisScript.make(`${generation}${state}
local stamp, live = state(KEYS[2])
if live then return gen .. stamp end
local holders = 1
if stamp then holders = tonumber(redis.call('getrange', KEYS[2], 33, -1)) + 1 end
stamp = stamp or ARGV[2]
redis.call('set', KEYS[2], gen .. stamp .. '!' .. holders, 'px', ARGV[3])
return gen .. stamp`)

/** ARGV: header reserved, ttl (ms, or empty), payload. Keeps the stamp: who reserved with us may still fill. */
export const fill = RedisScript.make(
  `${write}
if redis.call('get', KEYS[1]) ~= string.sub(ARGV[1], 1, 16) then return 0 end
if redis.call('getrange', KEYS[2], 0, 31) ~= ARGV[1] then return 0 end
write(KEYS[2], ARGV[1] .. ARGV[3], ARGV[2])
return 1`,
  { retry: true }
)

/** ARGV: header reserved. The last holder of a placeholder removes it. */
export const abandon = RedisScript.make(`
local head = ARGV[1] .. '!'
local text = redis.call('getrange', KEYS[2], 0, 50)
if string.sub(text, 1, 33) ~= head then return end
local holders = tonumber(string.sub(text, 34)) - 1
if holders < 1 then redis.call('unlink', KEYS[2])
else redis.call('set', KEYS[2], head .. holders, 'keepttl') end`)

/** Of each entry whether it is live (1 or 0); unlinks what older generations have left behind. */
export const sieve = RedisScript.make(
  `
local gen = redis.call('get', KEYS[1])${state}
local found = {}
for i = 2, #KEYS do
  local stamp, live = state(KEYS[i])
  if not stamp then redis.call('unlink', KEYS[i]) end
  found[i - 1] = live and 1 or 0
end
return found`,
  { retry: true }
)
