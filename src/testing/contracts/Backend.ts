/**
 * What a contract suite needs of a backend: instances that share it, a way to let
 * time pass, and a way to cut an instance off.
 *
 * {@link onServer} makes one of a store that talks to a server, {@link onMemory} of
 * a store that lives in this process and on `TestClock`, and {@link live} of
 * anything else. Where a backend has some of the stores only, memory fills in the
 * others, so that a lone `LockStore` can be held to the contract of `Lock`.
 *
 * @since 0.2.0
 */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import {
  type CacheStore,
  Cohort,
  type EventQueueStore,
  Instance,
  type LockStore,
  type PubSubTransport
} from "../../index.ts"
import {
  MemoryCacheStore,
  MemoryEventQueueStore,
  MemoryHub,
  MemoryLockStore,
  MemoryPubSubTransport
} from "../../layers/memory/index.ts"
import * as TcpProxy from "./TcpProxy.ts"

/**
 * The ports: what a backend implements one or several of.
 *
 * @since 0.2.0
 */
export type Stores =
  | CacheStore.CacheStore
  | EventQueueStore.EventQueueStore
  | LockStore.LockStore
  | PubSubTransport.PubSubTransport

/**
 * One instance of the app under test, alive as long as the test's scope.
 *
 * @since 0.2.0
 */
export interface TestInstance {
  readonly id: string
  /** Runs an effect with this instance's services. */
  readonly run: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, Exclude<R, Cohort.Services>>
  readonly context: Context.Context<Cohort.Services>
  /** Closes the instance before the test ends, as a clean stop would. */
  readonly close: Effect.Effect<void>
  /** Cuts the instance off from its backend, until `reconnect`. */
  readonly disconnect: Effect.Effect<void>
  readonly reconnect: Effect.Effect<void>
}

/**
 * A cluster on a backend of its own (or one that nobody else's names reach).
 *
 * @since 0.2.0
 */
export interface TestBackend {
  readonly instance: (options?: Instance.Options) => Effect.Effect<TestInstance, never, Scope.Scope>
}

/**
 * A promise that a backend cannot keep is `false` here: the suites then test that
 * the weaker behaviour below holds, and the backend's documents say so.
 *
 * @since 0.2.0
 */
export interface Features {
  /**
   * A job is not taken in while one of its id lives, or ended less than its `keepId` ago.
   *
   * `false`: every `publish` answers that it is no duplicate, and each job runs, also those of one id.
   */
  readonly deduplicates: boolean
  /**
   * An attempt goes on, and its end counts, while its instance is cut off for less than a lease.
   *
   * `false`: a cut gives the job to another instance at once, as its next attempt; the end of the attempt
   * that was cut off is refused.
   */
  readonly attemptsOutliveCuts: boolean
  /**
   * A read of a cache sees what was written before it, on any instance, and fails when its own is cut off.
   *
   * `false`: it sees what its own instance wrote, and what others did some moments later, all in one order; one
   * that is cut off answers from memory until it notices.
   */
  readonly readsFollowWrites: boolean
  /**
   * The locks that are held can be listed, with who holds them and who waits.
   *
   * `false`: the store has no `list`, and `Lock.list` fails with `Unavailable`.
   */
  readonly listsLocks: boolean
}

/**
 * Of a backend that keeps the whole contract.
 *
 * @since 0.2.0
 */
export const allFeatures: Features = {
  deduplicates: true,
  attemptsOutliveCuts: true,
  readsFollowWrites: true,
  listsLocks: true
}

/**
 * A backend under test; made by {@link onServer}, {@link onMemory} or {@link live}.
 *
 * @since 0.2.0
 */
export interface Backend {
  readonly name: string
  readonly features: Features
  /** A fresh backend for one test. */
  readonly make: Effect.Effect<TestBackend, never, Scope.Scope>
  /** Lets time pass: virtual on memory, real on servers. */
  readonly advance: (duration: Duration.Input) => Effect.Effect<void>
  /** Lets what was just started reach the backend. */
  readonly settle: Effect.Effect<void>
  /** Whether time is `TestClock`'s, and exact. */
  readonly virtual: boolean
  readonly concurrent: boolean
  /** How late what has a time may be, in milliseconds, where time is real and machines are busy. */
  readonly lateness: number
  /** Anything the tests of this backend need in context. */
  readonly layer: Layer.Layer<never>
}

/**
 * What every backend under test has.
 *
 * @since 0.2.0
 */
export interface Options {
  /** As in "Lock on postgres". */
  readonly name: string
  /** Which promises the backend cannot keep. Default: none, it keeps all. */
  readonly features?: Partial<Features> | undefined
  /** How long what is started takes at most to reach the backend, also on a busy machine. Default 100 ms. */
  readonly settle?: Duration.Input | undefined
  /** How late what has a time may be before a test fails, in milliseconds; slows tests that wait for it. Default 0. */
  readonly lateness?: number | undefined
}

/**
 * What a backend on real time has.
 *
 * @since 0.2.0
 */
export interface LiveOptions extends Options {
  /** Whether its tests, which mostly wait, run beside each other. Default `true`. */
  readonly concurrent?: boolean | undefined
}

const defaultSettle = "100 millis"

/** Starts an instance on stores; what they lack is the hub's. */
const start = (
  stores: Layer.Layer<never, unknown, Instance.Instance>,
  hub: MemoryHub.MemoryHub["Service"],
  options: Instance.Options,
  cut: Pick<TestInstance, "disconnect" | "reconnect">
): Effect.Effect<TestInstance, never, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
    const layer = Cohort.layer.pipe(
      Layer.provide(stores),
      Layer.provide([
        MemoryCacheStore.layer,
        MemoryEventQueueStore.layer,
        MemoryLockStore.layer,
        MemoryPubSubTransport.layer
      ]),
      Layer.provide(Layer.succeed(MemoryHub.MemoryHub, hub)),
      Layer.provideMerge(Instance.layer(options))
    )
    const context = yield* Effect.orDie(Layer.buildWithScope(Layer.fresh(layer), scope))
    const { id } = yield* Effect.provide(Instance.Instance, context)
    return {
      id,
      context,
      run: Effect.provide(context),
      close: Scope.close(scope, Exit.void),
      disconnect: Effect.andThen(hub.disconnect(id), cut.disconnect),
      reconnect: Effect.andThen(cut.reconnect, hub.reconnect(id))
    }
  })

/**
 * A backend in the memory of this process, on `TestClock`: a hub for every test.
 *
 * `stores` are those that are not memory's own; default none.
 *
 * @since 0.2.0
 */
export const onMemory = <S extends Stores = never>(
  options: Options & {
    readonly stores?: Layer.Layer<S, unknown, Instance.Instance | MemoryHub.MemoryHub> | undefined
  }
): Backend => ({
  name: options.name,
  features: { ...allFeatures, ...options.features },
  lateness: options.lateness ?? 0,
  advance: (duration) => TestClock.adjust(duration),
  settle: TestClock.adjust(options.settle ?? defaultSettle),
  virtual: true,
  concurrent: false,
  layer: Layer.empty,
  make: Effect.gen(function* () {
    const hub = yield* MemoryHub.make
    const stores = Layer.provide(options.stores ?? Layer.empty, Layer.succeed(MemoryHub.MemoryHub, hub))
    let count = 0
    return {
      instance: (instance) => start(stores, hub, { app: "test", id: `instance-${count++}`, ...instance }, uncut)
    }
  })
})

/** An instance of memory alone is cut off by its hub. */
const uncut = { disconnect: Effect.void, reconnect: Effect.void }

/** The clock of a test stands still; that of a server does not. */
const liveClock = Clock.Clock.defaultValue()
const sleep = (duration: Duration.Input) => Effect.provideService(Effect.sleep(duration), Clock.Clock, liveClock)

/**
 * A backend outside this process, on real time: an app name for every test, and a
 * `connect` of its own for every instance. `disconnect` must cut the instance off
 * (its operations fail, its connections are gone), until `reconnect`.
 *
 * @since 0.2.0
 */
export const live = <S extends Stores>(
  options: LiveOptions & {
    readonly connect: Effect.Effect<
      {
        readonly stores: Layer.Layer<S, unknown, Instance.Instance>
        readonly disconnect: Effect.Effect<void>
        readonly reconnect: Effect.Effect<void>
      },
      never,
      Scope.Scope
    >
  }
): Backend => ({
  name: options.name,
  features: { ...allFeatures, ...options.features },
  advance: sleep,
  settle: sleep(options.settle ?? defaultSettle),
  lateness: options.lateness ?? 0,
  virtual: false,
  concurrent: options.concurrent ?? true,
  // Tests run beside each other: each counts for itself.
  layer: Layer.merge(
    Layer.succeed(Clock.Clock, liveClock),
    Layer.sync(Metric.MetricRegistry, () => new Map())
  ),
  make: Effect.gen(function* () {
    const hub = yield* MemoryHub.make
    const app = `test-${SecureRandom.uuidV4Unsafe()}`
    let count = 0
    return {
      instance: (instance) =>
        Effect.flatMap(options.connect, ({ stores, ...cut }) =>
          start(stores, hub, { app, id: `instance-${count++}`, ...instance }, cut)
        )
    }
  })
})

/**
 * A backend behind one TCP port, on real time: every instance goes through a
 * {@link TcpProxy} of its own, which cuts it off.
 *
 * `url` is where the server is (with its port, or with `port` for urls without);
 * `stores` gets the url of an instance's proxy, with everything else as it was.
 *
 * @since 0.2.0
 */
export const onServer = <S extends Stores>(
  options: LiveOptions & {
    readonly url: string | Effect.Effect<string>
    readonly port?: number | undefined
    readonly stores: (url: string) => Layer.Layer<S, unknown, Instance.Instance>
  }
): Backend =>
  live({
    ...options,
    connect: Effect.gen(function* () {
      const url = new URL(typeof options.url === "string" ? options.url : yield* options.url)
      const proxy = yield* TcpProxy.make({ host: url.hostname, port: Number(url.port || options.port) })
      url.hostname = "127.0.0.1"
      url.port = String(proxy.port)
      return {
        stores: options.stores(url.href),
        disconnect: Effect.andThen(proxy.refuse, proxy.reset),
        reconnect: proxy.heal
      }
    })
  })
