/**
 * The replicated log as a RabbitMQ stream: one durable queue of type `stream` for an
 * app. Records are published through the default exchange, with confirms.
 *
 * The stream forgets its oldest segments past `maxBytes` or `maxAge`, whichever
 * comes first, a segment at a time; it always keeps the one being written. RabbitMQ wants
 * the same retention from every instance, for as long as the stream exists.
 *
 * Every session has an exclusive queue, bound by the name of its author. It goes with the session: what is
 * published by that name is returned when the process has died.
 *
 * RabbitMQ 3.10 never brings back a stream that was made within the last moments before it
 * was killed ("home node is down"): that one has to be deleted by hand.
 */
import type { ConsumeMessage } from "amqplib"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type { Unavailable } from "../../../services/Reason.ts"
import { reasonOf } from "../../internal/Reconnect.ts"
import type { AmqpConnection, Topology } from "../AmqpConnection.ts"
import { unavailable } from "../AmqpLink.ts"
import type { Session } from "../AmqpSession.ts"
import { shortName } from "../names.ts"
import type { LogStream } from "./LogStream.ts"

export interface Retention {
  readonly maxBytes: number
  /** Milliseconds. */
  readonly maxAge: number
}

export const retentionOf = (options: Partial<{ readonly [K in keyof Retention]: number | undefined }>): Retention => ({
  maxBytes: options.maxBytes ?? 64 * 1024 * 1024,
  maxAge: options.maxAge ?? 7 * 86_400_000
})

/** What RabbitMQ keeps of a record beside its body, in bytes, roughly. */
export const recordOverhead = 200
/** Retention is by segments: so many make up all. */
const segments = 16
/** Deliveries on their way before the first has been handled. */
const prefetch = 1_000
/** So many are acknowledged at once; of an instance that has nothing to say, which makes a mark each second, half a minute's. */
const batch = 32
/** One that every broker has. */
const directory = "amq.direct"
const address = (author: string): string => `cohort.log.v1.${author}`

export const make = (amqp: AmqpConnection["Service"], app: string, { maxAge, maxBytes }: Retention): LogStream => {
  const queue = shortName(`cohort.log.v1.${app}`)
  const topology: Topology = {
    declare: (channel) =>
      channel.assertQueue(queue, {
        durable: true,
        arguments: {
          "x-queue-type": "stream",
          "x-max-length-bytes": maxBytes,
          "x-max-age": `${Math.ceil(maxAge / 1_000)}s`,
          "x-stream-max-segment-size-bytes": Math.ceil(maxBytes / segments)
        }
      })
  }
  const properties = { deliveryMode: 2 }
  const nothing = Buffer.alloc(0)

  return {
    open: ({ author, from, onEnd, onRecord }) =>
      Effect.gen(function* () {
        const failed = yield* Deferred.make<never, Unavailable>()
        let over = false
        const end = (cause: unknown) => {
          if (over) return
          over = true
          Deferred.doneUnsafe(failed, Effect.fail(unavailable(reasonOf(cause), cause)))
          onEnd(cause)
        }
        let used = false
        const setup = async (session: Session) => {
          // One session only: the next one begins at another offset.
          if (used) throw new Error("over")
          used = true
          try {
            await topology.declare(session.channel)
            const { queue: presence } = await session.channel.assertQueue("", {
              exclusive: true,
              durable: false,
              autoDelete: true,
              arguments: { "x-queue-type": "classic", "x-max-length": 0 }
            })
            await session.channel.bindQueue(presence, directory, address(author))
            // Without a consumer it would outlive the session, and there may be many on one connection.
            await session.consume(presence, () => {}, { noAck: true })
            await session.channel.prefetch(prefetch)
            await session.consume(queue, deliver(session), { arguments: { "x-stream-offset": from } })
          } catch (error) {
            end(error)
            throw error
          }
        }
        /** Acknowledging is a write of its own, and asks for no more than to be sent the next. */
        const deliver = (session: Session) => {
          let unacknowledged = 0
          return (message: ConsumeMessage) => {
            if (over) return
            onRecord(Number(message.properties.headers?.["x-stream-offset"]), message.content)
            if (++unacknowledged < batch) return
            unacknowledged = 0
            session.ack(message, true)
          }
        }
        const sessions = yield* amqp.open({ setup, onDown: () => end(new Error("the channel ended")) })
        yield* Effect.raceFirst(sessions.ready, Deferred.await(failed))
        return {
          append: (content, refused) => {
            amqp.requestPublish({ exchange: "", routingKey: queue, content, properties, topology }, (result) => {
              if (result._tag === "Failure") refused(result.cause)
            })
          },
          probe: (other, absent) => {
            amqp.requestPublish(
              { exchange: directory, routingKey: address(other), content: nothing, properties: { mandatory: true } },
              (result) => {
                if (result._tag === "Success" && !result.value) absent()
              }
            )
          }
        }
      })
  }
}
