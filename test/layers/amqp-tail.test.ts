/** What reads a stream of RabbitMQ to its end: on a stream in memory, which can be made anew. */
import { assert, it } from "@effect/vitest"
import type { ConsumeMessage } from "amqplib"
import * as Effect from "effect/Effect"
import type { AmqpConnection, Outgoing } from "../../src/layers/amqp/AmqpConnection.ts"
import type { Session, SessionOptions } from "../../src/layers/amqp/AmqpSession.ts"
import * as AmqpTail from "../../src/layers/amqp/AmqpTail.ts"

/** A stream, and a connection that knows nothing else. */
const makeStream = () => {
  let records: Array<Outgoing> = []
  let wake = () => {}
  let reopen = () => {}
  const append = (record: Outgoing) => {
    records.push(record)
    wake()
  }
  const open = ({ setup }: SessionOptions) =>
    Effect.promise(async () => {
      const start = async () => {
        const session = {
          over: false,
          channel: { prefetch: async () => ({}) },
          ack: () => true,
          abandon: () => {
            session.over = true
            queueMicrotask(reopen)
          },
          consume: async (_: string, onMessage: (message: ConsumeMessage) => void, options: object) => {
            let next = (options as { readonly arguments: Record<string, number> }).arguments["x-stream-offset"]!
            wake = () => {
              for (; next < records.length && !session.over; next++) {
                const { content, properties } = records[next]!
                const headers = { "x-stream-offset": next }
                onMessage({ content, properties: { ...properties, headers } } as unknown as ConsumeMessage)
              }
            }
            queueMicrotask(wake)
            return async () => {}
          }
        }
        await setup(session as unknown as Session)
        return session as unknown as Session
      }
      let current: Session
      reopen = () => {
        current.over = true
        void start().then((session) => {
          current = session
        })
      }
      current = await start()
      return { current: () => current, ready: Effect.sync(() => current) }
    })
  const amqp = {
    timeout: 4_000,
    open,
    publish: (message: Outgoing) =>
      Effect.as(
        Effect.sync(() => append(message)),
        true
      )
  } as unknown as AmqpConnection["Service"]
  return {
    amqp,
    say: (text: string) => append({ exchange: "", routingKey: "", content: Buffer.from(text) }),
    remake: () => {
      records = []
    },
    reconnect: () => reopen()
  }
}

const turns = Effect.promise(async () => {
  for (let turn = 0; turn < 20; turn++) await new Promise((done) => setImmediate(done))
})

it.effect("a stream that was made anew is read from its start, also when others have made as many marks there", () =>
  Effect.gen(function* () {
    const { amqp, reconnect, remake, say } = makeStream()
    const seen: Array<string> = []
    const tail = yield* AmqpTail.make(amqp, {
      stream: "stream",
      topology: { declare: async () => ({}) },
      onBegin: () => void seen.splice(0),
      onRecord: (content) => void seen.push(content.toString()),
      name: "a"
    })
    say("before")
    yield* tail.catchUp
    assert.deepStrictEqual(seen, ["before"])
    remake()
    say("after")
    yield* amqp.publish({
      exchange: "",
      routingKey: "",
      content: Buffer.from("."),
      properties: { type: "mark", messageId: "b.0" }
    })
    reconnect()
    yield* turns
    assert.deepStrictEqual(seen, ["after"])
  })
)
