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
  /** First come, first served; a Set so that one can leave from the middle. */
  waiters: Set<Waiter> | undefined
  /** Set while there are waiters: passes the lock on when its holder's ttl runs out. */
  expiry: Timer | undefined
}

interface Waiter {
  readonly ttl: number
  readonly wake: (grant: Grant) => void
}

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
    const now = timers.now()
    const entry = entries.get(key)
    if (entry === undefined) {
      const holder = grant(key, now)
      entries.set(key, { holder, expiresAt: now + ttl, waiters: undefined, expiry: undefined })
      return holder
    }
    if (entry.expiresAt > now) return undefined
    pass(key, entry)
    return entries.has(key) ? undefined : take(key, ttl)
  }

  /** Gives the lock to the next waiter, or forgets the key. */
  const pass = (key: string, entry: Entry): void => {
    if (entry.waiters === undefined || entry.waiters.size === 0) {
      if (entry.expiry !== undefined) timers.cancel(entry.expiry)
      entries.delete(key)
      return
    }
    const waiter = entry.waiters.values().next().value!
    entry.waiters.delete(waiter)
    const now = timers.now()
    entry.holder = grant(key, now)
    entry.expiresAt = now + waiter.ttl
    watch(key, entry)
    hub.enqueue(() => waiter.wake(entry.holder))
  }

  /** Keeps the expiry timer while someone waits. */
  const watch = (key: string, entry: Entry): void => {
    if (entry.waiters === undefined || entry.waiters.size === 0) return
    if (entry.expiry !== undefined) {
      if (entry.expiry.run !== undefined && entry.expiry.due <= entry.expiresAt) return
      timers.cancel(entry.expiry)
    }
    entry.expiry = timers.at(entry.expiresAt, () => {
      if (entries.get(key) !== entry) return
      if (timers.now() >= entry.expiresAt) pass(key, entry)
      else watch(key, entry)
    })
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

  const wait = (key: string, ttl: number): Effect.Effect<Grant, Unavailable> =>
    Effect.callback<Grant, Unavailable>((resume) => {
      const entry = entries.get(key)!
      let granted: Grant | undefined
      let gone = false
      const waiter: Waiter = {
        ttl,
        wake: (grant) => {
          granted = grant
          if (gone) release(grant)
          // Cut off: the answer does not arrive, and the lease runs out, unless the connection returns first.
          else if (link.connected) resume(Effect.succeed(grant))
          else resume(link.run(() => grant))
        }
      }
      ;(entry.waiters ??= new Set()).add(waiter)
      watch(key, entry)
      return Effect.sync(() => {
        gone = true
        if (granted !== undefined) release(granted)
        else entry.waiters?.delete(waiter)
      })
    })

  return LockStore.of({
    system: "memory",
    tryAcquire: (key, ttl) => link.run(() => take(key, ttl)),
    acquire: (key, ttl) =>
      link.runEffect(() => {
        const taken = take(key, ttl)
        return taken === undefined ? wait(key, ttl) : Exit.succeed(taken)
      }),
    renew: (grant, ttl) =>
      link.run(() => {
        const entry = isLive(grant)
        if (entry === undefined) return false
        entry.expiresAt = timers.now() + ttl
        return true
      }),
    release: (grant) => link.run(() => release(grant))
  })
})

/**
 * Provides `LockStore`.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<LockStore, never, MemoryHub | Instance> = Layer.effect(LockStore, make)
