/**
 * The caches of an app, as a fold of the log.
 *
 * Entries live in memory up to `capacity`: past it, the cache that takes most
 * drops its entries, least recently written first, sparing what was read since.
 * What was dropped is a miss.
 *
 * **A fill loses against whatever comes after its reservation.** The record tells the
 * offset at which the load began; the fold knows the last writes of every cache, and
 * the offset before which it does not (`floor`). A fill from before the floor
 * is refused, and what was there is dropped: so an instance that has forgotten a `del`, or never
 * saw it, may miss an entry that others have, but none keeps a value that is out of date.
 *
 * Entries end their ttl after they were written, as the author's wall clock tells, but not earlier than their ttl after
 * what was surely before that, and not later than their ttl after they arrived here. So clocks that differ matter only for
 * what was written while an instance was away.
 *
 * **The log forgets its beginning.** What an entry's record is about to fall out of the log with is told by
 * `aging`; written again, as a fill that was reserved now, it changes nothing where it is known already.
 *
 * No clock is read here: moments come in by argument.
 */
import type { Payload } from "../../../services/Payload.ts"
import type { CacheRecord } from "./LogRecord.ts"

/** One moment on both clocks, in milliseconds. */
export interface Moment {
  /** Monotonic. */
  readonly now: number
  /** Unix time. */
  readonly wall: number
  /** How much of the log has been read, in bytes. */
  readonly read: number
  /** Monotonic: what is read now was not written before. */
  readonly since: number
}

/** An entry, to be written again. */
export interface Aging {
  readonly space: string
  readonly key: string
  readonly payload: Payload
  /** Milliseconds left. */
  readonly ttl: number | undefined
}

interface Entry {
  readonly payload: Payload
  /** Monotonic; `Infinity` without a ttl. */
  readonly expiresAt: number
  readonly size: number
  /** Where in the log it was last written, in bytes, and when, by its author's wall clock. */
  readonly read: number
  readonly wall: number
  /** Whether it was read since it came, or since it was last spared. */
  used: boolean
}

interface Space {
  entries: Map<string, Entry>
  size: number
  /** The next entry that a write looks at, to drop it if it has expired. */
  cursor: Iterator<[string, Entry]> | undefined
  /** Offsets of the last `set` or `del` by key, earliest first, and the length of all keys. */
  writes: Map<string, number>
  writesLength: number
  /** Not before the last write of any key that `writes` does not have. */
  floor: number
  /** The offset of the last reset, which wrote all keys. */
  readonly emptied: number
}

/** Of an entry, beside its text. A rough figure. */
const entryOverhead = 200
/** How many last writes a cache remembers. Fills that were reserved before the oldest of them are refused. */
const rememberedWrites = 10_000
const rememberedLength = 1_000_000

export class CacheFold {
  private readonly capacity: number
  private readonly rememberedWrites: number
  private readonly spaces = new Map<string, Space>()
  private size = 0
  private first = 0

  /** `capacity` in bytes. */
  constructor(capacity: number, remembered = rememberedWrites) {
    this.capacity = capacity
    this.rememberedWrites = remembered
  }

  /** Forgets everything: the log is read from `first`, its first record there is. */
  begin(first: number): void {
    this.spaces.clear()
    this.size = 0
    this.first = first
  }

  /** Returns how many keys a `del` removed, and whether a `fill` was stored. */
  apply(offset: number, record: CacheRecord, moment: Moment): number | boolean | undefined {
    const space = this.spaceOf(record.space)
    switch (record.kind) {
      case "set": {
        const expiresAt = endOf(record, moment)
        for (const { key, payload } of record.entries) {
          this.wrote(space, key, offset)
          this.put(space, key, payload, expiresAt, record.at, moment)
        }
        return undefined
      }
      case "del": {
        let removed = 0
        for (const key of record.keys) {
          if (this.live(space, key, moment.now) !== undefined) removed++
          this.drop(space, key)
          this.wrote(space, key, offset)
        }
        return removed
      }
      case "reset":
        this.size -= space.size
        this.spaces.set(record.space, emptySpace(offset, offset))
        return undefined
      case "fill":
        if (!mayFill(space, record.key, record.since)) {
          // Refused for not knowing: others may store it, so what is here may be out of date.
          if (!space.writes.has(record.key) && record.since >= space.emptied) this.drop(space, record.key)
          return false
        }
        this.put(space, record.key, record.payload, endOf(record, moment), record.at, moment)
        return true
    }
  }

  get(name: string, key: string, now: number): Payload | undefined {
    const space = this.spaces.get(name)
    if (space === undefined) return undefined
    const entry = this.live(space, key, now)
    if (entry === undefined) return undefined
    entry.used = true
    return entry.payload
  }

  /** Milliseconds left. */
  ttl(name: string, key: string, now: number): number | undefined {
    const space = this.spaces.get(name)
    const entry = space && this.live(space, key, now)
    return entry && entry.expiresAt - now
  }

  keys(name: string, now: number): Array<string> {
    const space = this.spaces.get(name)
    return space === undefined ? [] : [...space.entries.keys()].filter((key) => this.live(space, key, now))
  }

  /** Whether a fill that was reserved at `since` would still be stored, as far as is known. */
  mayFill(name: string, key: string, since: number): boolean {
    return mayFill(this.spaceOf(name), key, since)
  }

  /** Entries that were last written before, by either measure: up to so many bytes of them. */
  aging(before: { readonly read: number; readonly wall: number }, bytes: number, now: number): Array<Aging> {
    const found: Array<Aging> = []
    let left = bytes
    for (const [name, { entries }] of this.spaces) {
      for (const [key, { expiresAt, payload, read, size, wall }] of entries) {
        if ((read >= before.read && wall >= before.wall) || expiresAt <= now) continue
        left -= size
        if (left < 0) return found
        found.push({
          space: name,
          key,
          payload,
          ttl: expiresAt === Number.POSITIVE_INFINITY ? undefined : expiresAt - now
        })
      }
    }
    return found
  }

  /** Bytes, roughly. */
  get bytes(): number {
    return this.size
  }

  private spaceOf(name: string): Space {
    const known = this.spaces.get(name)
    if (known !== undefined) return known
    const space = emptySpace(this.first - 1)
    this.spaces.set(name, space)
    return space
  }

  private live(space: Space, key: string, now: number): Entry | undefined {
    const entry = space.entries.get(key)
    if (entry === undefined || entry.expiresAt > now) return entry
    this.drop(space, key)
    return undefined
  }

  private put(
    space: Space,
    key: string,
    payload: Payload,
    expiresAt: number,
    at: number,
    { now, read, wall }: Moment
  ): void {
    this.drop(space, key)
    const size = 2 * (key.length + payload.json.length) + entryOverhead
    if (expiresAt <= now || size > this.capacity) return
    space.entries.set(key, { payload, expiresAt, size, read, wall: Math.min(at, wall), used: false })
    space.size += size
    this.size += size
    this.sweep(space, now)
    this.sweep(space, now)
    while (this.size > this.capacity) this.evict(now)
  }

  private drop(space: Space, key: string): void {
    const entry = space.entries.get(key)
    if (entry === undefined) return
    space.entries.delete(key)
    space.size -= entry.size
    this.size -= entry.size
  }

  /** Drops the next entry if it has expired, so that what is kept stays near what is live. */
  private sweep(space: Space, now: number): void {
    space.cursor ??= space.entries.entries()
    const next = space.cursor.next()
    if (next.done) space.cursor = undefined
    else if (next.value[1].expiresAt <= now) this.drop(space, next.value[0])
  }

  /** Drops one entry of the cache that takes most. */
  private evict(now: number): void {
    let largest: Space | undefined
    for (const space of this.spaces.values()) {
      if (largest === undefined || space.size > largest.size) largest = space
    }
    for (const [key, entry] of largest!.entries) {
      if (!entry.used || entry.expiresAt <= now) {
        this.drop(largest!, key)
        return
      }
      // To the end of the line, where this walk comes to it again.
      entry.used = false
      largest!.entries.delete(key)
      largest!.entries.set(key, entry)
    }
  }

  private wrote(space: Space, key: string, offset: number): void {
    if (!space.writes.delete(key)) space.writesLength += key.length
    space.writes.set(key, offset)
    for (const [oldest, at] of space.writes) {
      if (space.writes.size <= this.rememberedWrites && space.writesLength <= rememberedLength) return
      space.writes.delete(oldest)
      space.writesLength -= oldest.length
      space.floor = at
    }
  }
}

const emptySpace = (floor: number, emptied = -1): Space => ({
  entries: new Map(),
  size: 0,
  cursor: undefined,
  writes: new Map(),
  writesLength: 0,
  floor,
  emptied
})

const mayFill = (space: Space, key: string, since: number): boolean => (space.writes.get(key) ?? space.floor) <= since

const endOf = (
  { at, ttl }: { readonly at: number; readonly ttl: number | undefined },
  { now, since, wall }: Moment
): number => (ttl === undefined ? Number.POSITIVE_INFINITY : ttl + Math.min(Math.max(now + at - wall, since), now))
