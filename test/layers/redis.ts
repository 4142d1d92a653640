/**
 * The Redis backend, for the contract suites: one private server for a file, and a
 * connection of its own for every instance, through proxies that can cut it off.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { layerStores, RedisConnection, type RedisOptions } from "../../src/layers/redis/index.ts"
import { type Backend, live } from "../../src/testing/contracts/Backend.ts"
import * as RedisCluster from "../servers/RedisCluster.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"

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

/** Every store on Redis. */
export const redisWith = (
  name: string,
  options: RedisOptions.RedisOptions = {},
  servers: Effect.Effect<Reach, never, Scope.Scope> = oneServer
): Backend =>
  live({
    name,
    connect: Effect.map(servers, (reach) => ({
      stores: Layer.provide(layerStores, RedisConnection.layer({ timeout: "1 second", ...reach.options, ...options })),
      disconnect: Effect.forEach(reach.proxies, ({ refuse, reset }) => Effect.andThen(refuse, reset), {
        discard: true
      }),
      reconnect: Effect.forEach(reach.proxies, ({ heal }) => heal, { discard: true })
    }))
  })

export const redis = redisWith("redis")
