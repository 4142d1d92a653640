/**
 * The RabbitMQ backend, for the contract suites: one private broker for a file, and
 * connections of its own for every instance, through a proxy that can cut it off.
 */
import { beforeAll } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type { Instance } from "../../src/index.ts"
import * as AmqpDelays from "../../src/layers/amqp/AmqpDelays.ts"
import { AmqpConnection } from "../../src/layers/amqp/index.ts"
import { type Backend, type Features, onServer, type Stores } from "../../src/testing/contracts/Backend.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"

/** The ladder that delays step down takes RabbitMQ seconds to make, once, which no test is about. */
const prepare = (url: string) =>
  Effect.gen(function* () {
    const amqp = yield* AmqpConnection.make({ url, timeout: "1 minute" })
    yield* amqp.call((channel) => AmqpDelays.declare(channel, AmqpDelays.steps - 1))
  })

interface Options {
  readonly lateness?: number
  readonly name?: string
  readonly features?: Partial<Features>
  /** Whether its tests are about delays. Default `true`. */
  readonly delays?: boolean
}

/** Some stores on RabbitMQ. */
export const amqpPart = <S extends Stores>(
  part: Layer.Layer<S, unknown, Instance.Instance | AmqpConnection.AmqpConnection>,
  { delays = true, features, lateness, name = "rabbitmq" }: Options = {}
): Backend => {
  beforeAll(async () => {
    const url = await Effect.runPromise(RabbitServer.sharedUrl)
    if (delays) await Effect.runPromise(Effect.scoped(prepare(url)))
  }, 120_000)
  return onServer({
    name,
    features: { attemptsOutliveCuts: false, ...features },
    lateness,
    url: RabbitServer.sharedUrl,
    port: 5672,
    stores: (url) =>
      Layer.provide(
        part,
        // On a busy machine it takes a while to be connected; and to declare a queue, which must not take 5 seconds.
        Layer.effect(
          AmqpConnection.AmqpConnection,
          Effect.retry(AmqpConnection.make({ url, timeout: "4 seconds" }), Schedule.recurs(5))
        )
      )
  })
}
