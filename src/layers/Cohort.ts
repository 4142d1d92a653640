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
import * as Result from "effect/Result"
import * as Cache from "../services/Cache.ts"
import type { CacheStore } from "../services/CacheStore.ts"
import { Defaults } from "../services/Defaults.ts"
import * as EventQueue from "../services/EventQueue.ts"
import type { EventQueueStore } from "../services/EventQueueStore.ts"
import * as Instance from "../services/Instance.ts"
import * as Setting from "../services/internal/setting.ts"
import * as Lock from "../services/Lock.ts"
import type { LockStore } from "../services/LockStore.ts"
import * as PubSub from "../services/PubSub.ts"
import type { PubSubTransport } from "../services/PubSubTransport.ts"
import type { InvalidInput, Unavailable } from "../services/Reason.ts"
import * as SyncMessage from "../services/SyncMessage.ts"
import * as WorkerMode from "../services/WorkerMode.ts"
import type { AmqpConnection } from "./amqp/AmqpConnection.ts"
import * as AmqpOptions from "./amqp/AmqpOptions.ts"
import * as MemoryCacheStore from "./memory/MemoryCacheStore.ts"
import * as MemoryEventQueueStore from "./memory/MemoryEventQueueStore.ts"
import * as MemoryHub from "./memory/MemoryHub.ts"
import * as MemoryLockStore from "./memory/MemoryLockStore.ts"
import * as MemoryPubSubTransport from "./memory/MemoryPubSubTransport.ts"
import * as RedisOptions from "./redis/RedisOptions.ts"
import type { RedisConnection } from "./redis/RedisConnection.ts"

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
export interface RedisLayerOptions extends Instance.Options, RedisOptions.RedisOptions {}

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
 * Options of {@link layerAmqp}.
 *
 * @since 0.2.0
 */
export interface AmqpLayerOptions extends Instance.Options, AmqpOptions.AmqpOptions {}

/**
 * Everything on RabbitMQ: one node or any of a cluster's. Cache and locks share one replicated log. The connection is
 * there for other use as well.
 *
 * Unless `lazy`, the layer fails with `Unavailable` when RabbitMQ is not reached within `timeout`.
 * amqplib is loaded when the layer is built.
 *
 * @since 0.2.0
 */
export const layerAmqp = (
  options: AmqpLayerOptions = {}
): Layer.Layer<Services | AmqpConnection, SyncMessage.SyncMessageError | InvalidInput | Unavailable> => {
  const stores = Effect.promise(() => import("./amqp/index.ts")).pipe(
    Effect.map((amqp) => Layer.provideMerge(amqp.layerStores, amqp.AmqpConnection.layer(options))),
    Layer.unwrap
  )
  return layer.pipe(Layer.provideMerge(stores), Layer.provideMerge(Instance.layer(options)))
}

/**
 * What a primitive can run on.
 *
 * @since 0.2.0
 */
export type Backend = "memory" | "redis" | "amqp"

/**
 * @since 0.2.0
 */
export const backends: ReadonlyArray<Backend> = ["memory", "redis", "amqp"]

/**
 * A backend for each primitive. `pubsub` is that of sync messages, too.
 *
 * @since 0.2.0
 */
export interface Backends {
  readonly cache: Backend
  readonly lock: Backend
  readonly queue: Backend
  readonly pubsub: Backend
}

/**
 * Which backend a primitive runs on.
 *
 * @since 0.2.0
 */
export interface BackendOptions {
  /** Of every primitive that has none of its own. Default `"memory"`. */
  readonly backend?: Backend | undefined
  readonly cache?: Backend | undefined
  readonly lock?: Backend | undefined
  readonly queue?: Backend | undefined
  readonly pubsub?: Backend | undefined
}

/**
 * Options of {@link layerMixed}.
 *
 * @since 0.2.0
 */
export interface MixedOptions extends MemoryOptions, BackendOptions {
  readonly redis?: RedisOptions.RedisOptions | undefined
  readonly amqp?: AmqpOptions.AmqpOptions | undefined
  /** What applies where a caller says nothing. Default: what is in context. */
  readonly defaults?: Defaults | undefined
}

type StoreLayer<Store> = Layer.Layer<Store, InvalidInput | Unavailable, Instance.Instance>

interface StoreLayers {
  readonly cache: StoreLayer<CacheStore>
  readonly lock: StoreLayer<LockStore>
  readonly queue: StoreLayer<EventQueueStore>
  readonly pubsub: StoreLayer<PubSubTransport>
}

/** The stores of a backend, on one connection. */
const load: Readonly<Record<Backend, (options: MixedOptions) => Effect.Effect<StoreLayers>>> = {
  memory: ({ hub }) => {
    const provided = Layer.provide(hub === undefined ? MemoryHub.layer : Layer.succeed(MemoryHub.MemoryHub, hub))
    return Effect.succeed({
      cache: provided(MemoryCacheStore.layer),
      lock: provided(MemoryLockStore.layer),
      queue: provided(MemoryEventQueueStore.layer),
      pubsub: provided(MemoryPubSubTransport.layer)
    })
  },
  redis: (options) =>
    Effect.map(
      Effect.promise(() => import("./redis/index.ts")),
      (redis) => {
        const provided = Layer.provide(redis.RedisConnection.layer(options.redis))
        return {
          cache: provided(redis.RedisCacheStore.layer),
          lock: provided(redis.RedisLockStore.layer),
          queue: provided(redis.RedisEventQueueStore.layer),
          pubsub: provided(redis.RedisPubSubTransport.layer)
        }
      }
    ),
  amqp: (options) =>
    Effect.map(
      Effect.promise(() => import("./amqp/index.ts")),
      (amqp) => {
        const provided = Layer.provide(amqp.AmqpConnection.layer(options.amqp))
        return {
          cache: provided(amqp.AmqpCacheStore.layer),
          lock: provided(amqp.AmqpLockStore.layer),
          queue: provided(amqp.AmqpEventQueueStore.layer),
          pubsub: provided(amqp.AmqpPubSubTransport.layer)
        }
      }
    )
}

/**
 * Each primitive on a backend of its own choice, such as cache and locks on Redis, and queue and broadcast on RabbitMQ.
 * A backend has one connection, and only those that are used are loaded and connected to.
 *
 * @since 0.2.0
 */
export const layerMixed = (
  options: MixedOptions = {}
): Layer.Layer<Services, SyncMessage.SyncMessageError | InvalidInput | Unavailable> =>
  Layer.unwrap(
    Effect.gen(function* () {
      const chosen = backendsOf(options)
      const stores: Partial<Record<Backend, StoreLayers>> = {}
      for (const backend of new Set<Backend>(Object.values(chosen))) stores[backend] = yield* load[backend](options)
      return layer.pipe(
        Layer.provide(Layer.succeed(Defaults, { ...(yield* Defaults), ...options.defaults })),
        Layer.provide([
          stores[chosen.cache]!.cache,
          stores[chosen.lock]!.lock,
          stores[chosen.queue]!.queue,
          stores[chosen.pubsub]!.pubsub
        ])
      )
    })
  ).pipe(Layer.provideMerge(Instance.layer(options)))

/**
 * Which backend each primitive runs on, by the options of {@link layerMixed}.
 *
 * @since 0.2.0
 */
export const backendsOf = ({ backend = "memory", cache, lock, pubsub, queue }: BackendOptions): Backends => ({
  cache: cache ?? backend,
  lock: lock ?? backend,
  queue: queue ?? backend,
  pubsub: pubsub ?? backend
})

const backend = Setting.choice(backends)

/** Which backend each primitive runs on. */
export const backendSettings = {
  backend: backend("COHORT_BACKEND", "`memory`", "Backend of every primitive that has none of its own"),
  cache: backend("COHORT_CACHE", "`COHORT_BACKEND`", "Backend of caches"),
  lock: backend("COHORT_LOCK", "`COHORT_BACKEND`", "Backend of locks"),
  queue: backend("COHORT_QUEUE", "`COHORT_BACKEND`", "Backend of queues"),
  pubsub: backend("COHORT_PUBSUB", "`COHORT_BACKEND`", "Backend of broadcast and sync messages")
}

/** Who this instance is, and what it does. */
export const instanceSettings = {
  app: Setting.text(
    "COHORT_APP",
    "`app`; of the host: `cohort-host`",
    "Name of the application; two of them share a server unseen"
  ),
  id: Setting.text(
    "COHORT_INSTANCE",
    "random; of the host: `a`, `b`, …, whatever this says",
    "Id of the instance, unique per start"
  ),
  version: Setting.text("COHORT_VERSION", "`0`", "Version of the application, as other instances see it"),
  workerMode: Setting.text(
    "WORKER_MODE",
    "empty: everything",
    "`!` requests only, `*` all background work, `-` nothing, `a,b` these services' work, `!,a` requests and this"
  )
}

/** What applies where a caller says nothing. */
export const defaultSettings = {
  lockTtl: Setting.duration("COHORT_LOCK_TTL", "`30 seconds`", "How long a dead holder blocks a lock"),
  queueLease: Setting.duration("COHORT_QUEUE_LEASE", "`30 seconds`", "After which a silent worker has lost its jobs"),
  queueConcurrency: Setting.count(1, 10_000)(
    "COHORT_QUEUE_CONCURRENCY",
    "1",
    "How many jobs a subscription runs at a time"
  ),
  shutdownTimeout: Setting.duration(
    "COHORT_SHUTDOWN_TIMEOUT",
    "`30 seconds`",
    "How long running jobs may take to end when an instance stops"
  ),
  telemetry: Setting.boolean(
    "COHORT_TELEMETRY",
    "`true`",
    "Whether messages, attempts and cache look-ups are counted, and logs of handlers annotated"
  )
}

/**
 * The backends that the environment names: `COHORT_BACKEND` (`memory`, the default, `redis` or `amqp`) for every
 * primitive, `COHORT_CACHE`, `COHORT_LOCK`, `COHORT_QUEUE` and `COHORT_PUBSUB` for one each.
 *
 * @since 0.2.0
 */
export const backendConfig: Config.Config<BackendOptions> = Setting.all(backendSettings)

/**
 * The options that the environment gives: what {@link backendConfig} reads, `COHORT_APP`, `COHORT_INSTANCE`,
 * `WORKER_MODE`, the defaults of locks and queues; and, for a backend that is used, what `RedisOptions.config`
 * (`REDIS_URL`, …) and `AmqpOptions.config` (`AMQP_URL`, …) read. All of them are in `docs/configuration.md`.
 *
 * @since 0.2.0
 */
export const config: Config.Config<MixedOptions> = Config.flatMap(backendConfig, (chosen) => {
  const used = Object.values(backendsOf(chosen))
  return Config.map(
    Config.all({
      instance: Config.flatMap(
        Setting.all(instanceSettings),
        Setting.refuse<Instance.Options>(
          (options) => Result.getOrUndefined(Result.flip(WorkerMode.parse(options.workerMode ?? ""))),
          () => instanceSettings.workerMode.name
        )
      ),
      defaults: Setting.all(defaultSettings),
      redis: used.includes("redis") ? RedisOptions.config : Config.succeed(undefined),
      amqp: used.includes("amqp") ? AmqpOptions.config : Config.succeed(undefined)
    }),
    ({ instance, ...options }): MixedOptions => ({ ...chosen, ...instance, ...options })
  )
})

/**
 * {@link layerMixed}, as the environment says (see {@link config}).
 *
 * @since 0.2.0
 */
export const layerConfig: Layer.Layer<
  Services,
  Config.ConfigError | SyncMessage.SyncMessageError | InvalidInput | Unavailable
> = Layer.unwrap(Effect.map(config, layerMixed))
