/**
 * The Redis backend, for the contract suites: one private server for a file, one
 * app name for a test, and a connection of its own for every instance, through a
 * proxy that can cut it off.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Scope from "effect/Scope"
import { Cohort, Instance } from "../../src/index.ts"
import { RedisConnection, type RedisOptions } from "../../src/layers/redis/index.ts"
import type { Backend } from "../contract/Backend.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"

/** The clock of a test stands still; that of a server does not. */
const live = Clock.Clock.defaultValue()

let apps = 0

/** The Redis backend, with the layers that make an instance on a connection. */
export const redisWith = (
  name: string,
  layer: (options: Instance.Options) => Layer.Layer<Cohort.Services, unknown, RedisConnection.RedisConnection>,
  options: RedisOptions.RedisOptions = {}
): Backend => ({
  name,
  features: { savesQueue: true },
  concurrent: true,
  advance: (duration) => Effect.provideService(Effect.sleep(duration), Clock.Clock, live),
  layer: Layer.succeed(Clock.Clock, live),
  make: Effect.gen(function* () {
    const target = new URL(yield* RedisServer.sharedUrl)
    const app = `test-${process.pid}-${apps++}`
    let count = 0
    return {
      instance: (instanceOptions) =>
        Effect.gen(function* () {
          const scope = yield* Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))
          const proxy = yield* TcpProxy.make({ host: target.hostname, port: Number(target.port || 6379) })
          const url = new URL(target)
          url.hostname = "127.0.0.1"
          url.port = String(proxy.port)
          const connection = RedisConnection.layer({ url: url.href, timeout: "1 second", ...options })
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
            disconnect: Effect.andThen(proxy.refuse, proxy.reset),
            reconnect: proxy.heal
          }
        })
    }
  })
})

import {
  MemoryCacheStore,
  MemoryEventQueueStore,
  MemoryHub,
  MemoryLockStore,
  MemoryPubSubTransport
} from "../../src/layers/memory/index.ts"
export const redisPart = (part: Layer.Layer<any, any, any>): Backend =>
  redisWith(
    "redis",
    (options) =>
      Cohort.layer.pipe(
        Layer.provide(part),
        Layer.provide([
          MemoryCacheStore.layer,
          MemoryEventQueueStore.layer,
          MemoryLockStore.layer,
          MemoryPubSubTransport.layer
        ]),
        Layer.provide(MemoryHub.layer),
        Layer.provideMerge(Instance.layer(options))
      ) as any
  )
