/**
 * Locks in the memory of a {@link MemoryHub}.
 *
 * A key has an entry only while it is held or waited for. Fences come from one
 * counter of the hub that starts at the wall clock, so they increase per key
 * with nothing kept per key, and across a hub that was lost.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { Instance } from "../../services/Instance.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import type { Timer } from "../../services/internal/Timers.ts"
import { type Grant, LockStore } from "../../services/LockStore.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { MemoryHub } from "./MemoryHub.ts"

class Entry {
  readonly space: Space
  readonly key: string
  /** `undefined` once the key is forgotten. */
  holder: Granted | undefined = undefined
  expiresAt = 0
  /** First come, first served: a linked list, so that one can leave from the middle. */
  first: Waiter | undefined = undefined
  last: Waiter | undefined = undefined
  /** Passes the lock on when its holder's ttl runs out, if someone waits or its holder is out of reach. */
  expiry: Timer | undefined = undefined

  constructor(space: Space, key: string) {
    this.space = space
    this.key = key
  }
}

interface Waiter {
  readonly ttl: number
  /** The id of its instance. */
  readonly by: string
  readonly wake: (grant: Grant) => void
  previous: Waiter | undefined
  next: Waiter | undefined
}

const join = (entry: Entry, waiter: Waiter): void => {
  waiter.previous = entry.last
  if (entry.last === undefined) entry.first = waiter
  else entry.last.next = waiter
  entry.last = waiter
}

const leave = (entry: Entry, waiter: Waiter): void => {
  if (waiter.previous === undefined) entry.first = waiter.next
  else waiter.previous.next = waiter.next
  if (waiter.next === undefined) entry.last = waiter.previous
  else waiter.next.previous = waiter.previous
  // An old waiter that pointed to those after it would keep them all from the young generation's collector.
  waiter.previous = waiter.next = undefined
}

/** The ids of the instances that wait, first come first. */
const waitersOf = ({ first }: Entry): ReadonlyArray<string> => {
  const ids: Array<string> = []
  for (let waiter = first; waiter !== undefined; waiter = waiter.next) ids.push(waiter.by)
  return ids
}

/**
 * Milliseconds. A grant ends here a little after it ends for its holder, who counts on the same clock:
 * the holder has lost the lease, and its work is interrupted, before the next one comes.
 */
const margin = 1

/** The locks of one app. */
type Space = Map<string, Entry>

interface State {
  readonly spaces: Map<string, Space>
  lastFence: number
}

const stateOf = (hub: MemoryHub["Service"]): State =>
  hub.part<State>("lock", () => ({ spaces: new Map(), lastFence: 0 }))

/** A grant that knows where it stands: giving it back looks nothing up. */
interface Granted extends Grant {
  readonly entry: Entry
  /** The id of the instance that holds it. */
  readonly by: string
}

/**
 * Makes the store of one instance.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<LockStore["Service"], never, MemoryHub | Instance> = Effect.gen(function* () {
  const hub = yield* MemoryHub
  const { id } = yield* Instance
  const link = hub.link(id)
  const { timers } = hub
  const state = stateOf(hub)
  if (state.lastFence === 0) state.lastFence = yield* Clock.currentTimeMillis

  const spaceOf = (name: string): Space => getOrMake(state.spaces, name, () => new Map())

  /** Makes a grant the entry's holder. */
  const grant = (entry: Entry, now: number, ttl: number, by: string): Granted => {
    const holder = { key: entry.key, fence: ++state.lastFence, since: now, entry, by }
    entry.holder = holder
    entry.expiresAt = now + ttl + margin
    return holder
  }

  /** Takes a free (or expired and unwaited-for) lock. */
  const take = (space: Space, key: string, ttl: number): Granted | undefined => {
    const entry = space.get(key)
    // Whoever comes waits behind those who wait already; `expiry` sees to a holder that is late.
    if (entry?.first !== undefined) return undefined
    const now = timers.now()
    if (entry === undefined) {
      const entry = new Entry(space, key)
      space.set(key, entry)
      return grant(entry, now, ttl, id)
    }
    return entry.expiresAt > now ? undefined : grant(entry, now, ttl, id)
  }

  /** Gives the lock to the next waiter, or forgets the key. */
  const pass = (entry: Entry): void => {
    entry.holder = undefined
    const waiter = entry.first
    if (waiter === undefined) {
      if (entry.expiry !== undefined) timers.cancel(entry.expiry)
      entry.space.delete(entry.key)
      return
    }
    leave(entry, waiter)
    const holder = grant(entry, timers.now(), waiter.ttl, waiter.by)
    watch(entry)
    hub.enqueue(() => waiter.wake(holder))
  }

  /** Keeps the expiry timer while someone waits. */
  const watch = (entry: Entry): void => {
    if (entry.first !== undefined) expire(entry)
  }

  /** Sees to it that the grant ends with its ttl even if nobody looks at the key again. */
  const expire = (entry: Entry): void => {
    if (entry.expiry !== undefined) {
      if (entry.expiry.pending && entry.expiry.due <= entry.expiresAt) return
      timers.cancel(entry.expiry)
    }
    entry.expiry = timers.at(entry.expiresAt, () => {
      if (entry.holder === undefined) return
      if (timers.now() >= entry.expiresAt) pass(entry)
      else expire(entry)
    })
  }

  /** The entry that a grant still holds, whether or not its ttl has passed. */
  const heldBy = (grant: Grant): Entry | undefined => {
    const { entry } = grant as Granted
    return entry.holder === grant ? entry : undefined
  }

  /** For a grant that its holder cannot give back, or does not even know of. */
  const orphan = (grant: Grant): void => {
    const entry = heldBy(grant)
    if (entry !== undefined) expire(entry)
  }

  const release = (grant: Grant): void => {
    const entry = heldBy(grant)
    if (entry !== undefined) pass(entry)
  }

  /** Takes the lock, or waits for it. Returns what withdraws the request. */
  const request = (
    name: string,
    key: string,
    ttl: number,
    resume: (granted: Effect.Effect<Grant, Unavailable>) => void
  ): (() => void) => {
    if (!link.connected) {
      resume(link.runEffect(() => wait(name, key, ttl)))
      return () => {}
    }
    // Cut off: the answer does not arrive, and the lease runs out, unless the connection returns first.
    const answer = (grant: Grant) => {
      if (link.connected) return resume(Exit.succeed(grant))
      orphan(grant)
      resume(link.run(() => grant))
    }
    const space = spaceOf(name)
    let granted: Grant | undefined = take(space, key, ttl)
    let gone = false
    if (granted !== undefined) {
      answer(granted)
      return () => release(granted!)
    }
    const entry = space.get(key)!
    const waiter: Waiter = {
      ttl,
      by: id,
      wake: (grant) => {
        granted = grant
        if (gone || link.crashed) release(grant)
        else answer(grant)
      },
      previous: undefined,
      next: undefined
    }
    join(entry, waiter)
    watch(entry)
    return () => {
      gone = true
      if (granted !== undefined) release(granted)
      else if (waiter.previous !== undefined || entry.first === waiter) leave(entry, waiter)
    }
  }

  const wait = (name: string, key: string, ttl: number): Effect.Effect<Grant, Unavailable> =>
    Effect.callback<Grant, Unavailable>((resume) => Effect.sync(request(name, key, ttl, resume)))

  return LockStore.of({
    system: "memory",
    // `tryAcquire` and `release` are the whole cost of an uncontended lock: connected, they spare the closure.
    tryAcquire: (name, key, ttl) =>
      link.connected ? Exit.succeed(take(spaceOf(name), key, ttl)) : link.run(() => take(spaceOf(name), key, ttl)),
    acquire: (name, key, ttl) =>
      link.runEffect(() => {
        const taken = take(spaceOf(name), key, ttl)
        return taken === undefined ? wait(name, key, ttl) : Exit.succeed(taken)
      }),
    request,
    list: (name) =>
      link.run(() => {
        const now = timers.now()
        return [...spaceOf(name).values()].flatMap((entry) => {
          const { expiresAt, holder, key } = entry
          if (holder === undefined || expiresAt <= now) return []
          return [{ key, fence: holder.fence, ttl: expiresAt - now, holder: holder.by, waiters: waitersOf(entry) }]
        })
      }),
    release: (grant) => {
      if (!link.connected) {
        orphan(grant)
        return link.run(() => release(grant))
      }
      release(grant)
      return Exit.void
    },
    renew: (grant, ttl) =>
      link.run(() => {
        const entry = heldBy(grant)
        if (entry === undefined || entry.expiresAt <= timers.now()) return false
        entry.expiresAt = timers.now() + ttl + margin
        watch(entry)
        return true
      })
  })
})

/**
 * A lock as the hub knows it.
 *
 * @since 0.2.0
 */
export interface LockState {
  /** What the locks of one app are called by. */
  readonly space: string
  readonly key: string
  /** The id of the instance that has it. */
  readonly holder: string
  readonly fence: number
  /** Milliseconds until the lease runs out. */
  readonly expiresIn: number
  /** The ids of the instances that wait, first come first. */
  readonly waiters: ReadonlyArray<string>
}

/**
 * The locks that are held on a hub, for tests to look at.
 *
 * @since 0.2.0
 */
export const inspect = (hub: MemoryHub["Service"]): ReadonlyArray<LockState> =>
  [...stateOf(hub).spaces].flatMap(([space, entries]) =>
    [...entries.values()].flatMap((entry) => {
      const { expiresAt, first, holder, key } = entry
      const expiresIn = expiresAt - margin - hub.timers.now()
      if (holder === undefined || (expiresIn <= 0 && first === undefined)) return []
      return [{ space, key, holder: holder.by, fence: holder.fence, expiresIn, waiters: waitersOf(entry) }]
    })
  )

/**
 * Provides `LockStore`.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<LockStore, never, MemoryHub | Instance> = Layer.effect(LockStore, make)
