/**
 * `Lock` for small tests. See `TestStores` for what the test layers have in common.
 *
 * To see work under a lock lose its lease, let its renewals fail and its ttl pass:
 *
 * ```ts
 * yield* TestLock.fail("renew", { times: Infinity })
 * yield* TestClock.adjust("30 seconds")
 * ```
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as MemoryLockStore from "../layers/memory/MemoryLockStore.ts"
import type * as Instance from "../services/Instance.ts"
import * as Lock from "../services/Lock.ts"
import * as TestStores from "./TestStores.ts"

/**
 * Provides `Lock`.
 *
 * @since 0.2.0
 */
export const layerTest: Layer.Layer<Lock.Lock | TestStores.TestStores | Instance.Instance> = Layer.provideMerge(
  Lock.layer,
  TestStores.layer
)

/**
 * A lock that is held.
 *
 * @since 0.2.0
 */
export interface Held {
  readonly key: string
  readonly fence: number
  /** Whether by the instance under test, not by {@link hold}. */
  readonly here: boolean
  /** Milliseconds until the lease runs out. */
  readonly expiresIn: number
  /** How many wait for it. */
  readonly waiters: number
}

/**
 * The locks that are held now.
 *
 * @since 0.2.0
 */
export const held: Effect.Effect<ReadonlyArray<Held>, never, TestStores.TestStores> = TestStores.TestStores.useSync(
  ({ hub }) =>
    MemoryLockStore.inspect(hub).map(({ expiresIn, fence, holder, key, waiters }) => ({
      ...{ key, fence, expiresIn },
      here: holder === "here",
      waiters: waiters.length
    }))
)

/**
 * Another instance holds the lock, until the scope closes; waits for it if need be.
 *
 * @since 0.2.0
 */
export const hold = (
  key: string,
  options?: Lock.LeaseOptions
): Effect.Effect<Lock.Lease, Lock.LockError, TestStores.TestStores | Scope.Scope> =>
  TestStores.TestStores.use(({ elsewhere }) => Effect.provide(Lock.acquire(key, options), elsewhere))

/**
 * Makes operations fail with `Unavailable`; `on` is a key.
 *
 * @since 0.2.0
 */
export const fail = (
  operation: "acquire" | "renew" | "release" | "any",
  options?: TestStores.FailOptions
): Effect.Effect<void, never, TestStores.TestStores> => TestStores.fail("lock", operation, options)

/**
 * Ends what {@link fail} began.
 *
 * @since 0.2.0
 */
export const recover: Effect.Effect<void, never, TestStores.TestStores> = TestStores.recover("lock")
