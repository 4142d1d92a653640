/**
 * The RabbitMQ backend, for the contract suites: one private broker for a file, and
 * connections of its own for every instance, through a proxy that can cut it off.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { Instance } from "../../src/index.ts"
import * as AmqpDelays from "../../src/layers/amqp/AmqpDelays.ts"
import { AmqpConnection } from "../../src/layers/amqp/index.ts"
import { type Backend, type Features, onServer, type Stores } from "../../src/testing/contracts/Backend.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"

/** The broker of this file. The ladder that delays step down takes it seconds to make, once, which no test is about. */
let prepared: Promise<string> | undefined
const broker = Effect.flatMap(RabbitServer.sharedUrl, (url) =>
  Effect.promise(() => {
    const prepare = Effect.gen(function* () {
      const amqp = yield* AmqpConnection.make({ url, timeout: "1 minute" })
      yield* amqp.call((channel) => AmqpDelays.declare(channel, AmqpDelays.steps - 1))
      return url
    })
    prepared ??= Effect.runPromise(Effect.scoped(prepare))
    return prepared
  })
)

/** Some stores on RabbitMQ. */
export const amqpPart = <S extends Stores>(
  part: Layer.Layer<S, unknown, Instance.Instance | AmqpConnection.AmqpConnection>,
  features: Partial<Features> = {},
  name = "rabbitmq"
): Backend =>
  onServer({
    name,
    features: { deduplicates: false, attemptsOutliveCuts: false, ...features },
    url: broker,
    port: 5672,
    stores: (url) => Layer.provide(part, AmqpConnection.layer({ url, timeout: "1 second", heartbeat: "1 second" }))
  })
