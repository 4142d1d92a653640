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
import type { Timer } from "../../services/internal/Timers.ts"
import { type Grant, LockStore } from "../../services/LockStore.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { MemoryHub } from "./MemoryHub.ts"

interface Entry {
  holder: Grant
  expiresAt: number
  /** First come, first served; linked both ways, so that one can leave from the middle. */
  first: Waiter | undefined
  last: Waiter | undefined
  /** Set while there are waiters: passes the lock on when its holder's ttl runs out. */
  expiry: Timer | undefined
}

interface Waiter {
  readonly ttl: number
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
}

/**
 * Milliseconds. A grant ends here a little after it ends for its holder, who counts on the same clock:
 * the holder has lost the lease, and its work is interrupted, before the next one comes.
 */
const margin = 1

interface State {
  readonly entries: Map<string, Entry>
  lastFence: number
}

/**
 * Makes the store of one instance.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<LockStore["Service"], never, MemoryHub | Instance> = Effect.gen(function* () {
  const hub = yield* MemoryHub
  const link = hub.link((yield* Instance).id)
  const { timers } = hub
  const started = yield* Clock.currentTimeMillis
  const state = hub.part<State>("lock", () => ({ entries: new Map(), lastFence: started }))
  const { entries } = state

  const grant = (key: string, now: number): Grant => ({ key, fence: ++state.lastFence, since: now })

  /** Takes a free (or expired and unwaited-for) lock. */
  const take = (key: string, ttl: number): Grant | undefined => {
    const entry = entries.get(key)
    // Whoever comes waits behind those who wait already; `expiry` sees to a holder that is late.
    if (entry?.first !== undefined) return undefined
    const now = timers.now()
    if (entry === undefined) {
      const holder = grant(key, now)
      entries.set(key, { holder, expiresAt: now + ttl + margin, first: undefined, last: undefined, expiry: undefined })
      return holder
    }
    if (entry.expiresAt > now) return undefined
    pass(key, entry)
    return entries.has(key) ? undefined : take(key, ttl)
  }

  /** Gives the lock to the next waiter, or forgets the key. */
  const pass = (key: string, entry: Entry): void => {
    const waiter = entry.first
    if (waiter === undefined) {
      if (entry.expiry !== undefined) timers.cancel(entry.expiry)
      entries.delete(key)
      return
    }
    leave(entry, waiter)
    const now = timers.now()
    entry.holder = grant(key, now)
    entry.expiresAt = now + waiter.ttl + margin
    watch(key, entry)
    const { holder } = entry
    hub.enqueue(() => waiter.wake(holder))
  }

  /** Keeps the expiry timer while someone waits. */
  const watch = (key: string, entry: Entry): void => {
    if (entry.first !== undefined) expire(key, entry)
  }

  /** Sees to it that the grant ends with its ttl even if nobody looks at the key again. */
  const expire = (key: string, entry: Entry): void => {
    if (entry.expiry !== undefined) {
      if (entry.expiry.pending && entry.expiry.due <= entry.expiresAt) return
      timers.cancel(entry.expiry)
    }
    entry.expiry = timers.at(entry.expiresAt, () => {
      if (entries.get(key) !== entry) return
      if (timers.now() >= entry.expiresAt) pass(key, entry)
      else expire(key, entry)
    })
  }

  /** For a grant that its holder cannot give back, or does not even know of. */
  const orphan = (grant: Grant): void => {
    const entry = entries.get(grant.key)
    if (entry !== undefined && entry.holder.fence === grant.fence) expire(grant.key, entry)
  }

  const isLive = (grant: Grant): Entry | undefined => {
    const entry = entries.get(grant.key)
    return entry !== undefined && entry.holder.fence === grant.fence && entry.expiresAt > timers.now()
      ? entry
      : undefined
  }

  const release = (grant: Grant): void => {
    const entry = entries.get(grant.key)
    if (entry !== undefined && entry.holder.fence === grant.fence) pass(grant.key, entry)
  }

  /** Takes the lock, or waits for it. Returns what withdraws the request. */
  const request = (
    key: string,
    ttl: number,
    resume: (granted: Effect.Effect<Grant, Unavailable>) => void
  ): Effect.Effect<void> => {
    if (!link.connected) {
      resume(link.runEffect(() => wait(key, ttl)))
      return Effect.void
    }
    // Cut off: the answer does not arrive, and the lease runs out, unless the connection returns first.
    const answer = (grant: Grant) => {
      if (link.connected) return resume(Exit.succeed(grant))
      orphan(grant)
      resume(link.run(() => grant))
    }
    let granted = take(key, ttl)
    let gone = false
    if (granted !== undefined) {
      answer(granted)
      return Effect.sync(() => release(granted!))
    }
    const entry = entries.get(key)!
    const waiter: Waiter = {
      ttl,
      wake: (grant) => {
        granted = grant
        if (gone) release(grant)
        else answer(grant)
      },
      previous: undefined,
      next: undefined
    }
    join(entry, waiter)
    watch(key, entry)
    return Effect.sync(() => {
      gone = true
      if (granted !== undefined) release(granted)
      else if (waiter.previous !== undefined || entry.first === waiter) leave(entry, waiter)
    })
  }

  const wait = (key: string, ttl: number): Effect.Effect<Grant, Unavailable> =>
    Effect.callback<Grant, Unavailable>((resume) => request(key, ttl, resume))

  return LockStore.of({
    system: "memory",
    // `tryAcquire` and `release` are the whole cost of an uncontended lock: connected, they spare the closure.
    tryAcquire: (key, ttl) => (link.connected ? Exit.succeed(take(key, ttl)) : link.run(() => take(key, ttl))),
    acquire: (key, ttl) =>
      link.runEffect(() => {
        const taken = take(key, ttl)
        return taken === undefined ? wait(key, ttl) : Exit.succeed(taken)
      }),
    request,
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
        const entry = isLive(grant)
        if (entry === undefined) return false
        entry.expiresAt = timers.now() + ttl + margin
        watch(grant.key, entry)
        return true
      })
  })
})

/**
 * Provides `LockStore`.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<LockStore, never, MemoryHub | Instance> = Layer.effect(LockStore, make)
