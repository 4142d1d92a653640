/**
 * A RabbitMQ stream on virtual time, for simulations of the replicated log: records take their time to and from the broker,
 * what is on its way is lost when a connection goes, and whether an instance is told that it has gone is chance.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as AmqpCacheStore from "../../src/layers/amqp/AmqpCacheStore.ts"
import * as AmqpLockStore from "../../src/layers/amqp/AmqpLockStore.ts"
import type { LogStream, Session } from "../../src/layers/amqp/log/LogStream.ts"
import * as Log from "../../src/layers/amqp/log/ReplicatedLog.ts"
import { Instance } from "../../src/services/Instance.ts"
import * as Timers from "../../src/services/internal/Timers.ts"
import { Unavailable } from "../../src/services/Reason.ts"
import { Backend } from "../../src/testing/index.ts"

interface Tail {
  readonly author: string
  readonly onRecord: (offset: number, body: Buffer) => void
  readonly onEnd: (cause: unknown) => void
  cursor: number
  /** When the last record on its way arrives: they keep their order. */
  due: number
  /** The broker has it; it may have gone for the instance, and not for the broker, and the other way round. */
  open: boolean
}

/** What the broker has. */
class Broker {
  readonly timers: Timers.Timers
  /** Whole numbers of milliseconds, from 1. */
  readonly latency: () => number
  private records: Array<Buffer> = []
  private first = 0
  private bytes = 0
  private readonly retained: number
  readonly tails = new Set<Tail>()

  constructor(timers: Timers.Timers, latency: () => number, retained: number) {
    this.timers = timers
    this.latency = latency
    this.retained = retained
  }

  append(body: Buffer): void {
    this.records.push(body)
    this.bytes += body.length + 200
    // Forgets in parts, as a stream does by segments.
    if (this.bytes > this.retained) {
      const left = Math.ceil(this.records.length / 2)
      this.first += this.records.length - left
      this.records = this.records.slice(-left)
      this.bytes = this.records.reduce((sum, { length }) => sum + length + 200, 0)
    }
    for (const tail of this.tails) this.feed(tail)
  }

  feed(tail: Tail): void {
    for (; tail.cursor < this.first + this.records.length; tail.cursor++) {
      tail.cursor = Math.max(tail.cursor, this.first)
      const offset = tail.cursor
      const body = this.records[offset - this.first]!
      tail.due = Math.max(tail.due, this.timers.now() + this.latency())
      this.timers.at(tail.due, () => {
        if (tail.open) tail.onRecord(offset, body)
      })
    }
  }
}

/** One instance's connection to it. */
class Link {
  connected = true
  /** Whether it was told when it was cut off. */
  told = true
  private tail: Tail | undefined
  private sentDue = 0
  private readonly broker: Broker

  constructor(broker: Broker) {
    this.broker = broker
  }

  stream(receive: (task: () => void) => void): LogStream {
    return {
      open: ({ author, from, onEnd, onRecord }) =>
        Effect.gen({ self: this }, function* () {
          const { broker } = this
          yield* Effect.sleep(broker.latency())
          if (!this.connected) return yield* new Unavailable({ backend: "rabbitmq", detail: "refused" })
          const tail: Tail = {
            ...{ author, cursor: from === "first" ? 0 : from, due: 0, open: true },
            onRecord: (offset, body) => receive(() => tail.open && onRecord(offset, body)),
            onEnd: (cause) => receive(() => onEnd(cause))
          }
          this.tail = tail
          broker.tails.add(tail)
          yield* Effect.addFinalizer(() =>
            Effect.sync(() => {
              tail.open = false
              broker.tails.delete(tail)
            })
          )
          broker.feed(tail)
          return this.session(tail, receive)
        })
    }
  }

  private session(tail: Tail, receive: (task: () => void) => void): Session {
    const { broker } = this
    const { timers } = broker
    return {
      append: (body, refused) => {
        if (!tail.open && this.told) {
          timers.at(timers.now() + 1, () => receive(() => refused("no connection")))
          return
        }
        this.sentDue = Math.max(this.sentDue, timers.now() + broker.latency())
        timers.at(this.sentDue, () => {
          if (tail.open) broker.append(body)
        })
      },
      probe: (author, absent) => {
        timers.at(timers.now() + broker.latency(), () => {
          const isThere = [...broker.tails].some((other) => other.author === author)
          if (!isThere && tail.open) receive(absent)
        })
      }
    }
  }

  cut(told: boolean): void {
    this.connected = false
    this.told = told
    const { tail } = this
    if (tail === undefined) return
    tail.open = false
    this.broker.tails.delete(tail)
    if (told) tail.onEnd("cut")
  }

  heal(): void {
    this.connected = true
    // A connection that went unnoticed is noticed when it is used again.
    if (!this.told && this.tail !== undefined) this.tail.onEnd("cut")
    this.told = true
  }
}

/** Locks and caches on a stream that retains so many bytes; queues and broadcasts in memory. */
export const streamBackend = (
  options: { readonly retained?: number; readonly reads?: "local" | "latest" } = {}
): typeof Backend.memory =>
  Effect.gen(function* () {
    const memory = yield* Backend.memory
    const timers = yield* Timers.make
    const random = yield* Random.Random
    const between = (min: number, max: number) => min + Math.floor(random.nextDoubleUnsafe() * (max - min + 1))
    const retained = options.retained ?? 200_000
    const broker = new Broker(
      timers,
      () => (random.nextDoubleUnsafe() < 0.05 ? between(10, 400) : between(1, 10)),
      retained
    )
    const links = new Map<string, Link>()
    const linkOf = (id: string) => {
      const link = links.get(id) ?? new Link(broker)
      links.set(id, link)
      return link
    }
    const log = Layer.effect(
      Log.ReplicatedLog,
      Effect.gen(function* () {
        const { id } = yield* Instance
        const receive = yield* Backend.Receive
        return yield* Log.make(linkOf(id).stream(receive), { eager: true, maxBytes: retained })
      })
    )
    const stores = Layer.merge(
      AmqpLockStore.layerOnLog({ recovery: 20_000, snapshotMillis: 30_000 }),
      AmqpCacheStore.layerOnLog({ reads: options.reads })
    ).pipe(Layer.provide(log))
    return {
      layer: Layer.merge(memory.layer, stores),
      disconnect: (id) =>
        Effect.andThen(
          memory.disconnect(id),
          Effect.sync(() => linkOf(id).cut(between(0, 1) === 0))
        ),
      reconnect: (id) =>
        Effect.andThen(
          memory.reconnect(id),
          Effect.sync(() => linkOf(id).heal())
        ),
      crash: (id) =>
        Effect.andThen(
          memory.crash(id),
          Effect.sync(() => linkOf(id).cut(false))
        )
    }
  })
