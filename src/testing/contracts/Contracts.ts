/**
 * The contract suites, one for each primitive: the definition of done for a backend.
 *
 * ```ts
 * // PgLockStore.test.ts
 * import { Backend, Contracts } from "cohort/testing/contracts"
 * import * as PgLockStore from "./PgLockStore.ts"
 *
 * Contracts.lock(
 *   Backend.onServer({ name: "postgres", url: process.env.DATABASE_URL!, stores: PgLockStore.layer })
 * )
 * ```
 *
 * Each declares its tests when it is called, as `describe` does: call it at the top
 * of a Vitest file. `@effect/vitest` and `vitest` have to be installed.
 *
 * Every test makes its own cluster and cuts instances off, so the server may be
 * shared, and is not to hold anything of value.
 *
 * @since 0.2.0
 */
import type { Backend } from "./Backend.ts"
import * as Cache from "./cache.ts"
import * as Lock from "./lock.ts"
import * as PubSub from "./pubsub.ts"
import * as Queue from "./queue.ts"
import * as Sync from "./sync.ts"

/**
 * Options of the suites that end with a property test.
 *
 * @since 0.2.0
 */
export interface Options {
  /** How many random histories the property test plays. Default: 150 for locks, 20 for queues. */
  readonly propertyRuns?: number | undefined
}

/**
 * The contract of `Cache`: requires a `CacheStore`, and for exclusive loads and near caches across
 * processes a `LockStore` and a `PubSubTransport` (memory's, where the backend has none).
 *
 * @since 0.2.0
 */
export const cache = (backend: Backend): void => Cache.suite(backend)

/**
 * The contract of `PubSub`: requires a `PubSubTransport`.
 *
 * @since 0.2.0
 */
export const pubsub = (backend: Backend): void => PubSub.suite(backend)

/**
 * The contract of `SyncMessage`: requires a `PubSubTransport`.
 *
 * @since 0.2.0
 */
export const sync = (backend: Backend): void => Sync.suite(backend)

/**
 * The contract of `EventQueue`: requires an `EventQueueStore`.
 *
 * @since 0.2.0
 */
export const queue = (backend: Backend, options?: Options): void => Queue.suite(backend, options)

/**
 * The contract of `Lock`: requires a `LockStore`.
 *
 * @since 0.2.0
 */
export const lock = (backend: Backend, options?: Options): void => Lock.suite(backend, options)
