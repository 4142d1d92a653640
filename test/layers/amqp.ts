/**
 * The RabbitMQ backend, for the contract suites: one private broker for a file, one
 * app name for a test, and connections of its own for every instance, through a
 * proxy that can cut it off.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Scope from "effect/Scope"
import { Cohort, Instance } from "../../src/index.ts"
import { AmqpConnection, type AmqpOptions } from "../../src/layers/amqp/index.ts"
import * as AmqpDelays from "../../src/layers/amqp/AmqpDelays.ts"
import {
  MemoryCacheStore,
  MemoryEventQueueStore,
  MemoryHub,
  MemoryLockStore,
  MemoryPubSubTransport
} from "../../src/layers/memory/index.ts"
import { allFeatures, type Backend } from "../../src/testing/contracts/Backend.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"

/** The clock of a test stands still; that of a broker does not. */
const live = Clock.Clock.defaultValue()

let apps = 0

/** The broker of this file. The ladder that delays step down takes it seconds to make, once, which no test is about. */
let prepared: Promise<URL> | undefined
const broker = Effect.flatMap(RabbitServer.sharedUrl, (url) =>
  Effect.promise(() => {
    const prepare = Effect.gen(function* () {
      const amqp = yield* AmqpConnection.make({ url, timeout: "1 minute" })
      yield* amqp.call((channel) => AmqpDelays.declare(channel, AmqpDelays.steps - 1))
      return new URL(url)
    })
    prepared ??= Effect.runPromise(Effect.scoped(prepare))
    return prepared
  })
)

/** The RabbitMQ backend, with the layers that make an instance on a connection. */
const amqpWith = (
  name: string,
  layer: (options: Instance.Options) => Layer.Layer<Cohort.Services, unknown, AmqpConnection.AmqpConnection>,
  options: AmqpOptions.AmqpOptions = {}
): Backend => ({
  name,
  features: { ...allFeatures, deduplicates: false, attemptsOutliveCuts: false },
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
          const url = new URL(yield* broker)
          const proxy = yield* TcpProxy.make({ host: url.hostname, port: Number(url.port || 5672) })
          url.hostname = "127.0.0.1"
          url.port = String(proxy.port)
          const connection = AmqpConnection.layer({
            url: url.href,
            timeout: "1 second",
            heartbeat: "1 second",
            ...options
          })
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

/** Some stores on RabbitMQ; those that are missing are memory's, which the suite at hand does not use. */
export const amqpPart = (part: Layer.Layer<any, any, any>): Backend =>
  amqpWith(
    "rabbitmq",
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
