/**
 * The Redis backend, for the contract suites: one private server for a file, one
 * app name for a test, and a connection of its own for every instance, through
 * proxies that can cut it off.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import { Cohort, Instance } from "../../src/index.ts"
import { layerStores, RedisConnection, type RedisOptions } from "../../src/layers/redis/index.ts"
import { allFeatures, type Backend } from "../../src/testing/contracts/Backend.ts"
import * as RedisCluster from "../servers/RedisCluster.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"

/** The clock of a test stands still; that of a server does not. */
const live = Clock.Clock.defaultValue()

let apps = 0

/** How an instance reaches its servers, and what can cut it off. */
interface Reach {
  readonly options: RedisOptions.RedisOptions
  readonly proxies: ReadonlyArray<TcpProxy.TcpProxy>
}

const oneServer: Effect.Effect<Reach, never, Scope.Scope> = Effect.gen(function* () {
  const url = new URL(yield* RedisServer.sharedUrl)
  const proxy = yield* TcpProxy.make({ host: url.hostname, port: Number(url.port || 6379) })
  url.hostname = "127.0.0.1"
  url.port = String(proxy.port)
  return { options: { url: url.href }, proxies: [proxy] }
})

/** The nodes of a cluster tell of each other by their own addresses: an instance takes those of its proxies instead. */
export const cluster: Effect.Effect<Reach, never, Scope.Scope> = Effect.gen(function* () {
  const { nodes } = yield* RedisCluster.shared
  const proxies = yield* Effect.forEach(nodes, ({ port }) => TcpProxy.make({ host: "127.0.0.1", port }))
  const addresses = proxies.map(({ port }) => ({ host: "127.0.0.1", port }))
  const natMap = Object.fromEntries(nodes.map(({ port }, i) => [`127.0.0.1:${port}`, addresses[i]!]))
  return { options: { cluster: { nodes: addresses }, natMap }, proxies }
})

/** The Redis backend, with the layers that make an instance on a connection. */
export const redisWith = (
  name: string,
  layer: (options: Instance.Options) => Layer.Layer<Cohort.Services, unknown, RedisConnection.RedisConnection>,
  options: RedisOptions.RedisOptions = {},
  servers: Effect.Effect<Reach, never, Scope.Scope> = oneServer
): Backend => ({
  name,
  features: allFeatures,
  concurrent: true,
  advance: (duration) => Effect.provideService(Effect.sleep(duration), Clock.Clock, live),
  // Tests run beside each other: each counts for itself.
  layer: Layer.merge(
    Layer.succeed(Clock.Clock, live),
    Layer.sync(Metric.MetricRegistry, () => new Map())
  ),
  make: Effect.sync(() => {
    const app = `test-${process.pid}-${apps++}`
    let count = 0
    return {
      instance: (instanceOptions) =>
        Effect.gen(function* () {
          const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
          const reach = yield* servers
          const connection = RedisConnection.layer({ timeout: "1 second", ...reach.options, ...options })
          const context = yield* Layer.buildWithScope(
            layer({ app, id: `instance-${count++}`, ...instanceOptions }).pipe(Layer.provide(connection)),
            scope
          ).pipe(Effect.orDie)
          const { id } = yield* Effect.provide(Instance.Instance, context)
          return {
            id,
            context,
            run: Effect.provide(context),
            close: Scope.close(scope, Exit.void),
            disconnect: Effect.forEach(reach.proxies, ({ refuse, reset }) => Effect.andThen(refuse, reset)).pipe(
              Effect.asVoid
            ),
            reconnect: Effect.forEach(reach.proxies, ({ heal }) => heal).pipe(Effect.asVoid)
          }
        })
    }
  })
})

/** All five primitives on Redis. */
export const redis = redisWith("redis", (options) =>
  Cohort.layer.pipe(Layer.provide(layerStores), Layer.provideMerge(Instance.layer(options)))
)
