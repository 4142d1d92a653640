/** The contract of `PubSub` (design §4.2), for every backend. */
import type { Backend } from "./Backend.ts"
import * as Debounce from "./pubsub/debounce.ts"
import * as Delivery from "./pubsub/delivery.ts"
import * as Fixture from "./pubsub/fixture.ts"
import * as Gaps from "./pubsub/gaps.ts"
import * as Handlers from "./pubsub/handlers.ts"
import * as Refusals from "./pubsub/refusals.ts"
import * as Stream from "./pubsub/stream.ts"
import { describeOn } from "./support.ts"

export const suite = (backend: Backend): void => {
  if (backend.virtual) Debounce.timing(backend)
  const on = Fixture.make(backend)
  describeOn(backend, "PubSub", () => {
    Delivery.tests(on)
    Handlers.tests(on)
    Gaps.tests(on)
    Debounce.tests(on)
    Stream.tests(on)
    Refusals.tests(on)
  })
}
