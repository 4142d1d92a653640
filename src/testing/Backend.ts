/**
 * What the instances of a simulated cluster share.
 *
 * @since 0.2.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as MemoryCacheStore from "../layers/memory/MemoryCacheStore.ts"
import * as MemoryEventQueueStore from "../layers/memory/MemoryEventQueueStore.ts"
import * as MemoryHub from "../layers/memory/MemoryHub.ts"
import * as MemoryLockStore from "../layers/memory/MemoryLockStore.ts"
import * as MemoryPubSubTransport from "../layers/memory/MemoryPubSubTransport.ts"
import type { CacheStore } from "../services/CacheStore.ts"
import type { EventQueueStore } from "../services/EventQueueStore.ts"
import type { Instance } from "../services/Instance.ts"
import type { LockStore } from "../services/LockStore.ts"
import type { PubSubTransport } from "../services/PubSubTransport.ts"

/**
 * The four ports.
 *
 * @since 0.2.0
 */
export type Stores = CacheStore | EventQueueStore | LockStore | PubSubTransport

/**
 * Runs what arrives at an instance from outside its fibers, from a socket say: at once, when the instance is thawed, or
 * never. A backend that calls back otherwise than by completing effects calls back through this.
 *
 * @since 0.2.0
 */
export const Receive: Context.Reference<(task: () => void) => void> = Context.Reference<(task: () => void) => void>(
  "cohort/testing/Receive",
  { defaultValue: () => (task) => task() }
)

/**
 * The broker of a simulated cluster, and how its instances reach it. It keeps to Effect's `Clock`, and to its
 * `Scheduler`: what a backend does outside them, such as real input and output, is neither frozen nor repeatable.
 *
 * @since 0.2.0
 */
export interface Backend {
  /** The stores of one instance; built anew for each start of each instance. */
  readonly layer: Layer.Layer<Stores, unknown, Instance>
  /** Cuts an instance off. */
  readonly disconnect: (instanceId: string) => Effect.Effect<void>
  readonly reconnect: (instanceId: string) => Effect.Effect<void>
  /** The instance is gone for good, without a word. */
  readonly crash: (instanceId: string) => Effect.Effect<void>
  /** What the broker holds, where it can tell. */
  readonly inspect?:
    | {
        readonly locks: () => ReadonlyArray<MemoryLockStore.LockState>
        readonly jobs: () => ReadonlyArray<MemoryEventQueueStore.JobState>
        readonly entries: () => ReadonlyArray<MemoryCacheStore.EntryState>
      }
    | undefined
}

/**
 * The memory layers on a hub.
 *
 * @since 0.2.0
 */
export const memory: Effect.Effect<Backend, never, Scope.Scope> = Effect.map(MemoryHub.make, (hub) => ({
  layer: Layer.mergeAll(
    MemoryCacheStore.layer,
    MemoryEventQueueStore.layer,
    MemoryLockStore.layer,
    MemoryPubSubTransport.layer
  ).pipe(Layer.provide(Layer.succeed(MemoryHub.MemoryHub, hub))),
  disconnect: hub.disconnect,
  reconnect: hub.reconnect,
  crash: hub.crash,
  inspect: {
    locks: () => MemoryLockStore.inspect(hub),
    jobs: () => MemoryEventQueueStore.inspect(hub),
    entries: () => MemoryCacheStore.inspect(hub)
  }
}))
