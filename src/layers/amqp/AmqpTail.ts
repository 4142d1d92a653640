/**
 * A stream read from its beginning, and followed: what is asked of it is answered
 * once everything that was written before the question is read.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Unavailable } from "../../services/Reason.ts"
import type { AmqpConnection, Topology } from "./AmqpConnection.ts"

const markType = "mark"

export interface Tail {
  /** Returns when all that was written before is read. */
  readonly catchUp: Effect.Effect<void, Unavailable>
}

export const make = (
  amqp: AmqpConnection["Service"],
  options: {
    readonly stream: string
    readonly topology: Topology
    /** Reads a record; each once, in order. */
    readonly onRecord: (content: Buffer) => void
    /** Unlike that of any other process. */
    readonly name: string
  }
): Effect.Effect<Tail, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { name, onRecord, stream, topology } = options
    let next = 0
    let marks = 0
    const waiting = new Map<string, () => void>()

    const { ready } = yield* amqp.open({
      setup: async (session) => {
        await topology.declare(session.channel)
        await session.channel.prefetch(1_000)
        await session.consume(
          stream,
          (message) => {
            session.ack(message)
            const offset = Number(message.properties.headers?.["x-stream-offset"])
            // Chunks are read whole: the first may begin before what was asked for.
            if (offset < next) return
            next = offset + 1
            if (message.properties.type !== markType) return onRecord(message.content)
            const mark = message.properties.messageId as string
            waiting.get(mark)?.()
          },
          { arguments: { "x-stream-offset": next } }
        )
      }
    })

    return {
      catchUp: Effect.gen(function* () {
        yield* ready
        const mark = `${name}.${marks++}`
        let isRead = false
        let resume = () => {}
        waiting.set(mark, () => {
          isRead = true
          resume()
        })
        yield* amqp
          .publish({
            exchange: "",
            routingKey: stream,
            content: Buffer.from("."),
            properties: { type: markType, messageId: mark, mandatory: true },
            topology
          })
          .pipe(
            Effect.andThen(
              Effect.callback<void>((done) => {
                if (isRead) done(Effect.void)
                else resume = () => done(Effect.void)
              })
            ),
            Effect.ensuring(Effect.sync(() => waiting.delete(mark)))
          )
      })
    }
  })
