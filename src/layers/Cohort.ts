/**
 * Which backend answers: bundles of layers for the edge of an application.
 *
 * ```ts
 * PluginHost.layer([Auth, AsyncTasks]).pipe(
 *   Layer.provide(Cohort.layerMemory({ app: "shop" })),
 *   Layer.launch,
 *   NodeRuntime.runMain
 * )
 * ```
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Cache from "../services/Cache.ts"
import type { CacheStore } from "../services/CacheStore.ts"
import * as EventQueue from "../services/EventQueue.ts"
import type { EventQueueStore } from "../services/EventQueueStore.ts"
import * as Instance from "../services/Instance.ts"
import * as Lock from "../services/Lock.ts"
import type { LockStore } from "../services/LockStore.ts"
import * as PubSub from "../services/PubSub.ts"
import type { PubSubTransport } from "../services/PubSubTransport.ts"
import type { InvalidInput, Unavailable } from "../services/Reason.ts"
import * as SyncMessage from "../services/SyncMessage.ts"
import * as MemoryCacheStore from "./memory/MemoryCacheStore.ts"
import * as MemoryEventQueueStore from "./memory/MemoryEventQueueStore.ts"
import * as MemoryHub from "./memory/MemoryHub.ts"
import * as MemoryLockStore from "./memory/MemoryLockStore.ts"
import * as MemoryPubSubTransport from "./memory/MemoryPubSubTransport.ts"
import type { RedisConnection } from "./redis/RedisConnection.ts"
import type { RedisOptions } from "./redis/RedisOptions.ts"

/**
 * The services a plugin may require.
 *
 * @since 0.1.0
 */
export type Services =
  | Cache.Cache
  | PubSub.PubSub
  | SyncMessage.SyncMessage
  | EventQueue.EventQueue
  | Lock.Lock
  | Instance.Instance

/**
 * The five primitives on whatever stores are provided: one backend for all, or a
 * backend for each.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<
  Exclude<Services, Instance.Instance>,
  SyncMessage.SyncMessageError,
  CacheStore | PubSubTransport | EventQueueStore | LockStore | Instance.Instance
> = Layer.mergeAll(Cache.layer, EventQueue.layer, Lock.layer, SyncMessage.layer.pipe(Layer.provideMerge(PubSub.layer)))

/**
 * Options of {@link layerMemory}.
 *
 * @since 0.1.0
 */
export interface MemoryOptions extends Instance.Options {
  /** What the instances of a cluster share. Default: a hub of its own, so a cluster of one. */
  readonly hub?: MemoryHub.MemoryHub["Service"] | undefined
}

/**
 * Everything in the memory of this process. The whole contract holds, on Effect's
 * `Clock`, so `TestClock` moves its time.
 *
 * With a `KeyValueStore` in context, queued jobs are saved when the layer closes
 * and restored when it opens.
 *
 * @since 0.1.0
 */
export const layerMemory = (
  options: MemoryOptions = {}
): Layer.Layer<Services, SyncMessage.SyncMessageError | InvalidInput | Unavailable> =>
  layer.pipe(
    Layer.provide([
      MemoryCacheStore.layer,
      MemoryEventQueueStore.layer,
      MemoryLockStore.layer,
      MemoryPubSubTransport.layer
    ]),
    Layer.provide(options.hub === undefined ? MemoryHub.layer : Layer.succeed(MemoryHub.MemoryHub, options.hub)),
    Layer.provideMerge(Instance.layer(options))
  )

/**
 * Options of {@link layerRedis}.
 *
 * @since 0.2.0
 */
export interface RedisLayerOptions extends Instance.Options, RedisOptions {}

/**
 * Everything on Redis: one server, a master behind Sentinels, or a Redis Cluster. The connection is there for
 * other use as well, such as `RedisPersistence`.
 *
 * Unless `lazy`, the layer fails with `Unavailable` when Redis is not reached within `timeout`.
 * ioredis is loaded when the layer is built.
 *
 * @since 0.2.0
 */
export const layerRedis = (
  options: RedisLayerOptions = {}
): Layer.Layer<Services | RedisConnection, SyncMessage.SyncMessageError | InvalidInput | Unavailable> => {
  const stores = Effect.promise(() => import("./redis/index.ts")).pipe(
    Effect.map((redis) => Layer.provideMerge(redis.layerStores, redis.RedisConnection.layer(options))),
    Layer.unwrap
  )
  return layer.pipe(Layer.provideMerge(stores), Layer.provideMerge(Instance.layer(options)))
}

/**
 * What the environment says: `COHORT_BACKEND` (`memory`, the default, or `redis`), `COHORT_APP` (default `app`),
 * `COHORT_INSTANCE` (default: random); and for Redis what `RedisOptions.config` reads (`REDIS_URL`, …).
 *
 * @since 0.2.0
 */
export const layerConfig: Layer.Layer<
  Services,
  Config.ConfigError | SyncMessage.SyncMessageError | InvalidInput | Unavailable
> = Layer.unwrap(
  Effect.gen(function* () {
    const { app, backend, id } = yield* Config.all({
      backend: Config.withDefault(Config.Literals(["memory", "redis"], "COHORT_BACKEND"), "memory"),
      app: Config.option(Config.String("COHORT_APP")),
      id: Config.option(Config.String("COHORT_INSTANCE"))
    })
    const instance = { app: Option.getOrUndefined(app), id: Option.getOrUndefined(id) }
    if (backend === "memory") return layerMemory(instance)
    const { RedisOptions } = yield* Effect.promise(() => import("./redis/index.ts"))
    return layerRedis({ ...instance, ...(yield* RedisOptions.config) })
  })
)
