/**
 * A stream read from its beginning, and followed: what is asked of it is answered
 * once everything that was written before the question is read.
 *
 * A channel that is opened again reads the last record again. If it is another one, or does not come (the stream was made
 * anew, or lost its end), everything is forgotten and read from the first record.
 */
import type { MessagePropertyHeaders } from "amqplib"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Timers from "../../services/internal/Timers.ts"
import type { Unavailable } from "../../services/Reason.ts"
import type { AmqpConnection, Topology } from "./AmqpConnection.ts"

const markType = "mark"

export interface Tail {
  /** Returns when all that was written before is read. */
  readonly catchUp: Effect.Effect<void, Unavailable>
}

export type OnRecord = (content: Buffer, headers: MessagePropertyHeaders | undefined) => void

export const make = (
  amqp: AmqpConnection["Service"],
  options: {
    readonly stream: string
    readonly topology: Topology
    /** What was read is forgotten. */
    readonly onBegin: () => void
    /** Reads a record; each once, in order. */
    readonly onRecord: OnRecord
    /** Unlike that of any other process. */
    readonly name: string
  }
): Effect.Effect<Tail, never, Scope.Scope> =>
  Effect.gen(function* () {
    const { name, onBegin, onRecord, stream, topology } = options
    const timers = yield* Timers.make
    let last: { readonly offset: number; readonly content: Buffer; readonly id: string | undefined } | undefined
    let marks = 0
    const waiting = new Map<string, () => void>()

    const { ready } = yield* amqp.open({
      setup: async (session) => {
        await topology.declare(session.channel)
        await session.channel.prefetch(1_000)
        let checking = last
        const beginAnew = () => {
          if (session.over || checking === undefined) return
          last = undefined
          onBegin()
          session.abandon(new Error(`${stream} is another stream than before`))
        }
        // One that ends before the last record that was read is silent.
        const silence = new Timers.Call(beginAnew)
        await session.consume(
          stream,
          (message) => {
            session.ack(message)
            const offset = Number(message.properties.headers?.["x-stream-offset"])
            const id = message.properties.messageId as string | undefined
            // Chunks are read whole: the first may begin before what was asked for.
            if (offset < (checking?.offset ?? (last === undefined ? 0 : last.offset + 1))) return
            if (checking !== undefined) {
              timers.cancel(silence)
              // Marks differ only in their ids.
              const isSame =
                offset === checking.offset && id === checking.id && message.content.equals(checking.content)
              if (!isSame) return beginAnew()
              checking = undefined
              return
            }
            last = { offset, content: message.content, id }
            if (message.properties.type !== markType) return onRecord(message.content, message.properties.headers)
            waiting.get(id!)?.()
          },
          { arguments: { "x-stream-offset": checking?.offset ?? 0 } }
        )
        if (checking !== undefined) timers.start(silence, timers.now() + amqp.timeout / 2)
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
