/**
 * CoS: exact, fast decoding with several language models at once.
 *
 * <p>An {@link io.cosrt.Engine} holds the loaded models, a {@link io.cosrt.Session} decodes one sequence with them, and
 * a {@link io.cosrt.TextStream} decodes its tokens to text:
 *
 * <pre>{@code
 * try (Engine engine = Engine.open(Path.of("engine.json"));
 *      Session session = engine.newSession()) {
 *     session.prompt(engine.encode("Once upon a time", true));
 *     StepResult step;
 *     do {
 *         step = session.step();                       // step.tokens() are the new tokens
 *     } while (step.finish() == Finish.NONE);
 * }
 * }</pre>
 *
 * <p>For servers of OpenAI's protocol, a {@link io.cosrt.Request} does all that, from the body to the answer, and a
 * {@link io.cosrt.Driver} decodes many of them on a thread of its own.
 *
 * <p><b>Errors.</b> The library reports a {@link io.cosrt.CosException} with a code and a message. A failed call
 * changes nothing. A call on a closed object throws an {@link java.lang.IllegalStateException}.
 *
 * <p><b>Ownership.</b> Close engines, sessions, streams and requests, in any order: the others may be used after their
 * engine is closed. The garbage collector frees objects that are not closed.
 *
 * <p><b>Threads.</b> Any number of threads may use an engine or a driver at once. One thread at a time may use a
 * session, a stream of text or a request, and it need not be the same thread each time. If another thread is using it,
 * a call fails with {@link io.cosrt.ErrorCode#BUSY}. {@link io.cosrt.Session#cancel}, {@link io.cosrt.Session#stats},
 * {@link io.cosrt.Request#cancel}, {@link io.cosrt.Request#choices} and every {@code close} may be called at any time.
 */
package io.cosrt;
