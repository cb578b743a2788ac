// What several steps brought is told as one.

#include "../src/news.hpp"

#include <cstdlib>
#include <iostream>

namespace {

void expect(bool holds, const char* what) {
    if (holds) return;
    std::cerr << "news: " << what << '\n';
    std::exit(1);
}

triton::News step(std::size_t choice, const char* text, std::int32_t token, cosrt::Finish finish) {
    triton::News news;
    news.choices.resize(2);
    triton::Told& told = news.choices[choice];
    told.text = text, told.tokens = {token}, told.log_probabilities = {-1}, told.finish = finish;
    news.answer = std::string("data: ") + text + "\n\n", news.usage[1] = token;
    return news;
}

}  // namespace

int main() {
    using cosrt::Finish;
    triton::News all;
    all.choices.resize(2);
    expect(!all.any(), "there is none at first");
    triton::News steps[] = {step(0, "a", 1, Finish::none), step(0, "b", 2, Finish::stop),
                            step(1, "c", 3, Finish::none)};
    for (triton::News& each : steps) all.join(each);
    expect(all.choices[0].text == "ab" && all.choices[0].tokens == std::vector<std::int32_t>{1, 2}, "texts are joined");
    expect(all.choices[1].text == "c" && all.choices[1].log_probabilities.size() == 1, "choices are kept apart");
    expect(all.choices[0].finish == Finish::stop, "an end that was told stays");
    expect(all.answer == "data: a\n\ndata: b\n\ndata: c\n\n" && all.usage[1] == 3, "the answer has all events");
    all.clear();
    expect(!all.any() && all.choices.size() == 2, "nothing is left");
    std::cout << "triton: news are joined\n";
}
