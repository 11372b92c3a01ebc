/**
 * Records when each endpoint may serve each service, which defines a misroute.
 *
 * A set of endpoints is pushed, and later seen to be what connections get. An endpoint that the push adds may serve
 * from the moment before it is sent. One that it leaves out must not serve any more once the push was seen in the
 * tables that govern: until then the agent may be away, or stopped, or istiod gone, and the older set is right. A
 * connection chooses during its connect() call; it is a misroute when the endpoint belongs to another service, or was
 * out for the whole of that call.
 */

/** Nanoseconds of CLOCK_MONOTONIC. */
export type Instant = number;

/** Times at which an endpoint must not serve: [from, to). */
interface Absence {
  from: Instant;
  to: Instant;
}

export class Validity {
  readonly #serviceOf: readonly number[];
  readonly #absences: Absence[][];
  /** By endpoint: pushed, and not left out by a later push. */
  readonly #wanted: boolean[];
  /** Left out by a push that was not yet seen in the tables. */
  readonly #leaving = new Set<number>();

  /** `serviceOf` gives each endpoint's service. At first none may serve. */
  constructor(serviceOf: readonly number[]) {
    this.#serviceOf = serviceOf;
    this.#absences = serviceOf.map(() => [{ from: Number.NEGATIVE_INFINITY, to: Number.POSITIVE_INFINITY }]);
    this.#wanted = serviceOf.map(() => false);
  }

  /** At `at` a push began that gives `service` exactly these endpoints. */
  pushed(service: number, endpoints: readonly number[], at: Instant): void {
    this.#serviceOf.forEach((owner, endpoint) => {
      if (owner !== service) return;
      const wanted = endpoints.includes(endpoint);
      const was = this.#wanted[endpoint] ?? false;
      this.#wanted[endpoint] = wanted;
      if (wanted) {
        this.#leaving.delete(endpoint);
        const last = this.#absences[endpoint]?.at(-1);
        if (last && last.to > at) last.to = at;
      } else if (was) this.#leaving.add(endpoint);
    });
  }

  /** At `at` the tables that govern were seen to hold all that was pushed. */
  applied(at: Instant): void {
    for (const endpoint of this.#leaving) {
      this.#absences[endpoint]?.push({ from: at, to: Number.POSITIVE_INFINITY });
    }
    this.#leaving.clear();
  }

  /** Why a connection to `service` whose connect() ran from `from` to `to` should not have met `endpoint`; undefined when it may. */
  fault(
    service: number,
    endpoint: number,
    from: Instant,
    to: Instant,
  ): "another service" | "removed" | undefined {
    if (this.#serviceOf[endpoint] !== service) return "another service";
    const absent = this.#absences[endpoint]?.some((absence) => absence.from <= from && to < absence.to);
    return absent ? "removed" : undefined;
  }
}
