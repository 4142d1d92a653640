/**
 * RabbitMQ, for the host: the server that the environment names, or a private one. What
 * is wrong is told with the name of the variable.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as AmqpConnection from "../../layers/amqp/AmqpConnection.ts"
import * as AmqpOptions from "../../layers/amqp/AmqpOptions.ts"
import * as AmqpQueueNames from "../../layers/amqp/AmqpQueueNames.ts"
import { shortName } from "../../layers/amqp/names.ts"
import { Tasks } from "../../plugins/async-task-manager/index.ts"
import * as Validate from "../../services/internal/validate.ts"
import type { InvalidInput, Unavailable } from "../../services/Reason.ts"
import { ofConfig, Refused } from "../Refused.ts"
import type * as Server from "../Server.ts"
import * as PrivateRabbit from "./PrivateRabbit.ts"

/** The options of the environment. */
const options: Effect.Effect<AmqpOptions.AmqpOptions, Refused> = AmqpOptions.config.pipe(Effect.mapError(ofConfig))

/** `AMQP_URL: …` of what a layer on RabbitMQ fails with. */
const refused = (variable: string, { message }: InvalidInput | Unavailable): Refused =>
  new Refused({ detail: `${variable}: ${message}` })

/** Connects once, to know. */
const check = (variable: string): Effect.Effect<void, Refused> =>
  Effect.gen(function* () {
    const found = yield* options
    yield* Effect.mapError(Layer.build(AmqpConnection.layer(found)), (error) => refused(variable, error))
  }).pipe(
    Effect.scoped,
    // The error tells what the connection would warn of.
    Effect.provideService(References.MinimumLogLevel, "Error")
  )

/** The channels of the plugins' jobs. */
const channels = [Tasks.RunTask.channel]

/**
 * RabbitMQ cannot be asked which queues an app has: these are those of the plugins here. The queues in which delays
 * pass are everyone's, and stay.
 */
const forget = (app: string): Effect.Effect<void> =>
  Effect.gen(function* () {
    const amqp = yield* AmqpConnection.make(yield* options)
    const queues = channels.flatMap((channel) => {
      const { dead, delays, jobs } = AmqpQueueNames.make(Validate.address(app, "queue", channel))
      return [jobs, dead, delays]
    })
    yield* Effect.forEach(
      [shortName(`cohort.log.v1.${app}`), ...queues],
      (queue) => amqp.call((channel) => channel.deleteQueue(queue), { retry: true }),
      { discard: true }
    )
  }).pipe(Effect.scoped, Effect.ignore)

export const server: Server.Kind = {
  variables: ["AMQP_URL", "AMQP_NODES"],
  others: ["AMQP_VHOST", "AMQP_USERNAME", "AMQP_PASSWORD", "AMQP_TLS"],
  options,
  check,
  binary: "rabbitmq-server",
  start: PrivateRabbit.start,
  forget
}
