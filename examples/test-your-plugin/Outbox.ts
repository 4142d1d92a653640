import { Context, Effect, Layer } from "effect"
import { type Mail, Mailer } from "./Mailing.ts"

/** A mailer for tests: takes a second for a mail, and keeps what it has sent. */
export class Outbox extends Context.Service<Outbox, Array<typeof Mail.Type>>()("test/Outbox") {
  static readonly layer = Layer.effectContext(
    Effect.sync(() => {
      const sent: Array<typeof Mail.Type> = []
      const send = (mail: typeof Mail.Type) =>
        Effect.delay(
          Effect.sync(() => void sent.push(mail)),
          "1 second"
        )
      return Context.make(Outbox, sent).pipe(Context.add(Mailer, { send }))
    })
  )
}
