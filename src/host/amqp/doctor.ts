/** What can be wrong with a RabbitMQ. It is asked directly: what is wrong may be what the layers wait for. */
import type { Socket } from "node:net"
import { type ChannelModel, connect } from "amqplib"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import { reasonOf } from "../../layers/internal/Reconnect.ts"
import * as AmqpOptions from "../../layers/amqp/AmqpOptions.ts"
import type { Backends } from "../../layers/Cohort.ts"
import { InvalidInput } from "../../services/Reason.ts"
import { type Examination, type Finding, judged, right, wrong } from "../Doctor.ts"
import { describe } from "../Refused.ts"

const about = "rabbitmq"

const isNewEnough = (version: string): boolean => {
  const [major = 0, minor = 0] = version.split(".").map(Number)
  return major > 3 || (major === 3 && minor >= 10)
}

const open = ({ heartbeat, nodes, password, timeout, tls, username, vhost }: AmqpOptions.Settings) =>
  Effect.acquireRelease(
    Effect.tryPromise({
      try: async () => {
        let failure: unknown
        for (const { host, port } of nodes) {
          try {
            const protocol = tls === undefined ? "amqp" : "amqps"
            const server = { protocol, hostname: host, port, username, password, vhost, heartbeat }
            const connection = await connect(server, { ...tls, noDelay: true, timeout })
            connection.on("error", () => undefined)
            return connection
          } catch (error) {
            failure = error
          }
        }
        throw failure
      },
      catch: (error) => error
    }),
    // Under an alarm RabbitMQ reads nothing more, and so does not answer to the close either.
    (connection) =>
      Effect.tryPromise(() => connection.close()).pipe(
        Effect.timeoutOption("1 second"),
        Effect.ignore,
        Effect.andThen(
          Effect.sync(() => (connection.connection as unknown as { readonly stream: Socket }).stream.destroy())
        )
      )
  )

/** Declares a queue of a type, and deletes it; on a channel of its own, as a refusal closes it. */
const declares = (connection: ChannelModel, type: "quorum" | "stream") =>
  Effect.tryPromise({
    try: async () => {
      const channel = await connection.createChannel()
      channel.on("error", () => undefined)
      const name = `cohort.doctor.${type}.${SecureRandom.uuidV4Unsafe()}`
      await channel.assertQueue(name, { durable: true, arguments: { "x-queue-type": type } })
      await channel.deleteQueue(name)
      await channel.close()
    },
    catch: (error) => error
  }).pipe(
    Effect.match({
      onSuccess: () => right(about, `it can declare a ${type} queue`),
      onFailure: (error) =>
        wrong(
          about,
          `it cannot declare a ${type} queue (${describe(error)}): enable its feature flag ${type}_queue, and give the user permission to configure`
        )
    })
  )

/** RabbitMQ tells of an alarm when something is published. */
const takesMessages = (connection: ChannelModel, timeout: number): Effect.Effect<Finding> =>
  Effect.gen(function* () {
    const blocked = yield* Effect.callback<string | undefined>((resume) => {
      connection.once("blocked", (reason: string) => resume(Effect.succeed(reason)))
      const publish = async () => {
        const channel = await connection.createConfirmChannel()
        channel.on("error", () => undefined)
        // No queue is bound with this name: nobody gets it.
        channel.publish("", `cohort.doctor.${SecureRandom.uuidV4Unsafe()}`, Buffer.from(""))
        await channel.waitForConfirms()
        resume(Effect.undefined)
      }
      publish().catch((error) => resume(Effect.succeed(describe(error))))
    }).pipe(
      Effect.timeoutOrElse({
        duration: timeout,
        orElse: () => Effect.succeed("it does not confirm a message")
      })
    )
    return blocked === undefined
      ? right(about, "it takes messages: no alarm of memory or disk")
      : wrong(about, `it takes no messages (${blocked}): free memory or disk of the broker`)
  })

export const examine = (backends: Backends): Examination =>
  Effect.gen(function* () {
    const settings = AmqpOptions.read(yield* AmqpOptions.config)
    if (settings instanceof InvalidInput) return yield* settings
    const connection = yield* open(settings)
    const version = String(connection.connection.serverProperties.version ?? "unknown")
    const needsStream = backends.cache === "amqp" || backends.lock === "amqp" || backends.queue === "amqp"
    return [
      right(about, `it answers, and lets ${settings.username} in at the vhost ${settings.vhost}`),
      judged(isNewEnough(version), about, `version ${version}`, "3.10 or newer is needed"),
      ...(backends.queue === "amqp" ? [yield* declares(connection, "quorum")] : []),
      ...(needsStream ? [yield* declares(connection, "stream")] : []),
      yield* takesMessages(connection, settings.timeout)
    ]
  }).pipe(
    Effect.scoped,
    Effect.catch((error) => Effect.succeed([wrong(about, reasonOf(error))]))
  )
