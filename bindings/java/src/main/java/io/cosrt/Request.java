// Requests of OpenAI's protocol.

package io.cosrt;

import java.lang.ref.Reference;
import java.util.Arrays;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;

/**
 * A request of OpenAI's protocol: what a body asks for, and the answer. {@link Engine#newRequest} makes one. One thread
 * at a time may use it; a call from another thread fails with {@link ErrorCode#BUSY}. Only {@link #cancel}, {@link
 * #choices} and {@link #close} may be called at any time.
 *
 * <pre>{@code
 * try (Request request = engine.newRequest(body, RequestOptions.builder().endpoint(Endpoint.CHAT).build())) {
 *     do {
 *         status = request.step();
 *         out.write(request.answer()); // events if the body asks for a stream, else the whole answer at the end
 *     } while (status.isOpen());
 * }
 * }</pre>
 *
 * <p>The engine may be closed before its requests. Closing a request cancels a running step of another thread, and
 * waits for it. A request that a {@link Driver} decodes is in use on the driver's thread until it has ended.
 */
public final class Request extends NativeObject {
    private final int models;
    private volatile DrivenRequest driven; // or null

    private Request(long pointer, int models) {
        super(pointer, Native::requestFree, Request::interrupt);
        this.models = models;
    }

    static Request make(long engine, byte[] body, RequestOptions options) {
        Objects.requireNonNull(options, "options");
        int models = Native.engineModelCount(engine);
        return new Request(options.start(engine, body), models);
    }

    private static void interrupt(long request) {
        try {
            Native.requestCancel(request);
        } catch (CosException poisoned) {
            // No step runs in a poisoned request.
        }
    }

    /** The number of choices: prompts times "n". Each decodes in a session of its own. */
    public int choices() {
        return shared(Native::requestChoices);
    }

    /**
     * How it stands, such as before its first step.
     *
     * @throws CosException the error that has ended the request, BUSY, POISONED
     */
    public RequestStatus status() {
        return exclusively(Native::requestStatus);
    }

    /**
     * Decodes until a choice has news if the body asks for a stream, and otherwise to the end. All choices of the
     * request share passes, and those of other threads too. An error of a choice ends the request, and each later step
     * throws it again.
     *
     * @throws CosException as for {@link Session#step}. {@link CosException#httpStatus} and {@link CosException#json}
     *                      answer the client.
     */
    public RequestStatus step() {
        return exclusively(request -> {
            Object[] outcome = new Object[1];
            Native.requestStep(false, new long[] {request}, outcome);
            if (outcome[0] instanceof RequestStatus status) {
                return status;
            }
            throw Native.failure(outcome[0]);
        });
    }

    /**
     * Advances many requests by one pass of each model, on the calling thread: for servers where one thread drives all,
     * as a {@link Driver} does. Those without news are in the middle of a round. Threads that call {@link #step} at the
     * same time share passes by themselves.
     *
     * <p>The requests may belong to several engines. Each has its own news, in their order, and an error of one hurts
     * no other: INVALID_ARGUMENT for null and for a request given twice, BUSY for one in use on another thread, {@link
     * IllegalStateException} for one that is closed, and all errors of {@link #step}.
     */
    public static List<RequestNews> stepMany(List<Request> requests) {
        RequestNews[] news = new RequestNews[requests.size()];
        Map<Request, Integer> begun = new IdentityHashMap<>();
        int[] indices = new int[news.length]; // of the requests that have begun
        long[] pointers = new long[news.length];
        try {
            int index = 0;
            int count = 0;
            for (Request request : requests) {
                try {
                    pointers[count] = begin(request, "requests", index, begun);
                    indices[count++] = index;
                } catch (CosException | IllegalStateException error) {
                    news[index] = new RequestNews(null, error);
                }
                index++;
            }
            Object[] outcomes = new Object[count];
            if (count > 0) {
                Native.requestStep(true, Arrays.copyOf(pointers, count), outcomes);
            }
            for (int i = 0; i < count; i++) {
                news[indices[i]] = outcomes[i] instanceof RequestStatus status
                        ? new RequestNews(status, null) : new RequestNews(null, Native.failure(outcomes[i]));
            }
        } finally {
            begun.forEach(END);
            Reference.reachabilityFence(requests);
        }
        return List.of(news);
    }

    /**
     * What a server sends for the last step, in UTF-8. If the body asks for a stream, these are complete server-sent
     * events, the last of which is {@code data: [DONE]}, or nothing while text is held back. Otherwise it is the body
     * of the answer once the request is done, and nothing before.
     *
     * @throws CosException BUSY, POISONED
     */
    public byte[] answer() {
        return exclusively(Native::requestAnswer);
    }

    /**
     * What the last step brought of a choice, for servers of another protocol.
     *
     * @param index less than {@link #choices}; choice c is of prompt c / n
     * @throws CosException INVALID_ARGUMENT (there is no such choice), BUSY, POISONED
     */
    public ChoiceNews choice(int index) {
        return exclusively(request -> Native.requestChoice(request, index, models));
    }

    /**
     * Lets the running step, or the next one if none is running, end the request with {@link RequestState#CANCELLED}.
     * May be called from any thread at any time. Never waits for a pass. Does nothing if the request is closed, because
     * the thread that cancels cannot know whether another thread has closed it.
     *
     * @throws CosException POISONED
     */
    public void cancel() {
        try {
            shared(request -> {
                Native.requestCancel(request);
                return null;
            });
        } catch (IllegalStateException closed) {
            // No step runs in a closed request.
        } finally {
            if (driven != null) {
                driven.resume();
            }
        }
    }

    @Override
    public void close() {
        try {
            cancel(); // else it could wait for a driver that waits until its text is taken
        } catch (CosException poisoned) {
            // It is freed all the same.
        }
        super.close();
    }

    /** Begins the use by a driver. {@link #release} ends it. */
    long begin(DrivenRequest by, Thread thread) {
        long pointer = begin(thread);
        driven = by;
        return pointer;
    }

    /** Ends the use by the driver, and closes. */
    void release() {
        end();
        super.close();
    }
}
